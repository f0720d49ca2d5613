"""Tables from rows: the right cells and only those, reasons for empty ones, ranks, damaged files, equal bytes."""

import io
import subprocess

import pandas as pd
import pytest

import visiondrop
from eval.files import ROOT
from eval.results import rows
from figures import tables
from figures.data import cells, choose, settings
from figures.look import render
from tests.support.results_rows import MODEL, row, write

LOCAL = ["gqa", "mme", "pope", "sqa", "textvqa"]  # scored here under the paper protocol
SERVER = ["mmbench", "mmbench_cn", "vqav2", "vizwiz"]


def long_form(tmp_path, *made, table="table1", model=MODEL, protocol=None) -> pd.DataFrame:
    """The table's CSV as a frame, indexed by (tokens, method, column)."""
    file = write(tmp_path, *made)
    arguments = [table[-1], "--model", model, "--results", str(file), "--out", str(tmp_path)]
    assert tables.main(arguments + (["--protocol", protocol] if protocol else [])) == 0
    (name,) = (p for p in tmp_path.glob("*.csv"))
    return pd.read_csv(name, keep_default_na=False, na_values=[""]).set_index(["tokens", "method", "column"])


def filled(frame: pd.DataFrame) -> set:
    """Which cells of ours hold a number."""
    return set(frame.index[frame["ours"].notna()])


def test_rows_fill_their_cells_and_only_those(tmp_path):
    frame = long_form(tmp_path, row("gqa", 62.0), row("gqa", 56.5, "visiondrop", 64), row("pope", 80.0, "fastv", 192))
    assert filled(frame) == {(576, "none", "gqa"), (64, "visiondrop", "gqa"), (192, "fastv", "pope")}
    cell = frame.loc[(64, "visiondrop", "gqa")]
    assert (cell.paper, cell.ours, cell.low, cell.high) == (55.89, 56.5, 55.5, 57.5)
    assert cell.delta == pytest.approx(0.61) and cell.n == 12578 and cell.mean_tokens == 64
    assert frame.loc[(64, "visiondrop", "mme")].note == "not run"


def test_a_whole_paper_row_gives_the_average(tmp_path):
    made = [row(b, 50.0) for b in LOCAL + SERVER] + [row(b, 45.0, "visiondrop", 64) for b in LOCAL + SERVER]
    frame = long_form(tmp_path, *made)
    assert (
        frame.loc[(64, "visiondrop", "avg")].ours == pytest.approx(90) and frame.loc[(576, "none", "avg")].ours == 100
    )
    assert frame.loc[(64, "visiondrop", "avg")].delta == pytest.approx(90 - 95.22)
    assert len(filled(frame)) == 20


def test_an_average_needs_every_column(tmp_path):
    made = [row(b, 50.0, m, t) for b in LOCAL for m, t in (("none", 576), ("visiondrop", 64))]
    frame = long_form(tmp_path, *made)
    assert pd.isna(frame.loc[(64, "visiondrop", "avg")].ours)
    assert frame.loc[(64, "visiondrop", "avg")].note == "5 of 9 columns: no average"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"split": "validation"}, "split validation"),
        ({"task": "other"}, "run on other"),
        ({"partial": True, "limit": 100, "n": 100}, "--limit 100"),
        ({"n": 12000}, "12000 of the split's 12578"),
        ({"score": None, "interval": None, "server": "https://server"}, "https://server"),
        ({"missing": ["exact_match"]}, "no question"),
        ({"model_fingerprint": "e" * 16}, "another checkpoint"),
        ({"questions": "p" * 16}, "other questions"),
        ({"protocol": "offline"}, "offline protocol"),
    ],
)
def test_what_cannot_be_compared_stays_empty_with_a_reason(tmp_path, changes, reason):
    late = {"date": "2026-02-01T00:00:00Z"}  # the unpruned row is the newest, so its checkpoint counts
    frame = long_form(
        tmp_path,
        row("gqa", **{"score": 56.5, "method": "visiondrop", "tokens": 64} | changes),
        row("gqa", 62.0, **late),
    )
    assert filled(frame) == {(576, "none", "gqa")}
    assert reason in frame.loc[(64, "visiondrop", "gqa")].note
    assert reason in (tmp_path / "table1-paper.md").read_text()


@pytest.mark.parametrize("changes", [{"model": "other"}, {"options": ["merge=off"]}, {"tokens": 65}])
def test_another_model_option_or_budget_is_not_this_cell(tmp_path, changes):
    frame = long_form(tmp_path, row("gqa", 62.0), row("gqa", 56.5, "visiondrop", **{"tokens": 64} | changes))
    assert filled(frame) == {(576, "none", "gqa")} and frame.loc[(64, "visiondrop", "gqa")].note == "not run"


def test_other_layout_is_not_comparable(tmp_path):
    model = "liuhaotian/llava-v1.6-vicuna-7b"
    bad = row("gqa", 60.0, "visiondrop", 320, model=model)
    frame = long_form(tmp_path, bad, table="table2", model=model)
    assert not filled(frame) and "layout pad" in frame.loc[(320, "visiondrop", "gqa")].note


def test_two_judges_do_not_meet_in_a_column(tmp_path):
    model = "LanguageBind/Video-LLaVA-7B"
    common = {"model": model, "ledger": {"layout": "video", "mean": 256.0}, "metrics": {"judge_score": 3.0}}

    def judged(score, server, **more):
        return row("tgif", score, **({"server": server} | common | more))

    base = judged(18.0, "judge one", tokens=None)
    same = judged(17.0, "judge one", method="visiondrop", tokens=256)
    other = judged(19.0, "judge two", method="visionzip", tokens=256)
    frame = long_form(tmp_path, base, same, other, table="table3", model=model)
    assert {key[:2] for key in filled(frame)} == {(2048, "none"), (256, "visiondrop")}
    note = frame.loc[(256, "visionzip", "tgif")].note
    assert note == "judged by judge two, the unpruned row by judge one"


def test_offline_rows_meet_the_paper_only_where_the_protocols_are_one(tmp_path):
    made = [row("gqa", 62.0, protocol="offline"), row("textvqa", 46.0, protocol="offline")]
    frame = long_form(tmp_path, *made, protocol="offline")
    assert frame.loc[(576, "none", "gqa")].delta == pytest.approx(0.08)
    text = frame.loc[(576, "none", "textvqa")]
    assert text.ours == 46.0 and pd.isna(text.paper) and pd.isna(text.delta) and "no delta" in text.note
    assert "58.20" not in (tmp_path / "table1-paper-offline.md").read_text()


def test_the_newest_of_two_equal_runs_counts(tmp_path):
    frame = long_form(tmp_path, row("gqa", 61.0, date="2026-03-01T00:00:00Z"), row("gqa", 62.0))
    assert frame.loc[(576, "none", "gqa")].ours == 61.0


def test_seeds_are_averaged(tmp_path):
    made = [row("gqa", 62.0)] + [row("gqa", s, "random", 64, options=[f"seed={i}"]) for i, s in enumerate((40.0, 44.0))]
    variant = settings.load()["table1"]["paper"]
    table = cells.load_rows([write(tmp_path, *made)])
    entry = settings.Entry("random", "random", 64)
    cell = cells.cell(table, variant, MODEL, entry, variant.columns[0], {})
    assert cell["ours"] == 42 and cell["note"] == "mean of 2 seeds"


def test_best_is_bold_and_second_underlined(tmp_path):
    made = [
        row("gqa", s, m, 64)
        for m, s in (("fastv", 50.0), ("visionzip", 55.0), ("vispruner", 55.0), ("visiondrop", 54.0))
    ]
    long_form(tmp_path, row("gqa", 62.0), *made)
    text = (tmp_path / "table1-paper.md").read_text()
    assert text.count("**55.00**") == 2 and "<u>54.00</u>" not in text and "**62.00**" not in text
    assert (tmp_path / "table1-paper.tex").read_text().count("\\textbf{55.00}") == 2


@pytest.mark.parametrize("damage", ["edit", "delete", "truncate"])
def test_damaged_rows_are_refused_with_the_line(tmp_path, capsys, damage):
    file = write(tmp_path, row("gqa", 62.0), row("pope", 86.0), row("sqa", 69.0))
    lines = file.read_text().splitlines(keepends=True)
    if damage == "edit":
        lines[1] = lines[1].replace('"score": 86.0', '"score": 96.0')
    elif damage == "delete":
        del lines[1]
    else:
        lines[1] = lines[1][:200] + "\n"
    file.write_text("".join(lines))
    assert tables.main(["1", "--model", MODEL, "--results", str(file), "--out", str(tmp_path)]) == 2
    assert "line 2" in capsys.readouterr().err and not list(tmp_path.glob("*.md"))
    assert len(rows.load(file)[0]) == 2  # no other row is lost


def test_metrics_of_one_benchmark_become_columns(tmp_path):
    variant, model = settings.variant("table1")
    kinds = {c.metric: 0.75 for c in variant.columns if c.metric}
    one = row("testbed", 80.0, protocol="offline", model=model, metrics=kinds)
    frame = cells.long_table(variant, model, cells.load_rows([write(tmp_path, one)])).set_index(
        ["tokens", "method", "column"]
    )
    cell = frame.loc[(576, "none", "testbed:hop2")]
    assert (
        cell.ours == 75
        and cell.n == 320
        and cell.low == pytest.approx(70.0, abs=0.1)
        and cell.high == pytest.approx(79.4, abs=0.1)
    )
    assert frame.loc[(576, "none", "testbed")].ours == 80 and pd.isna(cell.paper)


@pytest.mark.parametrize("name", list(settings.load()))
def test_every_entry_is_reachable(name):
    for variant in settings.load()[name].values():
        for entry in variant.entries:
            plan = visiondrop.plan(
                entry.method, None if entry.is_base else entry.tokens, shape=variant.shape, options=entry.options
            )
            if entry.method != "sparsevlm" and not entry.is_base:
                assert abs(plan.ledger().mean - entry.tokens) <= max(1, 0.005 * entry.tokens)


def test_ablation_arms_have_the_paper_mean():
    for variant in settings.load()["figure6"].values():
        assert {
            visiondrop.plan(e.method, e.tokens, shape=variant.shape, options=e.options).ledger().mean
            for e in variant.entries[1:]
        } == {128}


def test_footnote_letters():
    notes = render.Notes()
    assert [notes.mark(str(i)) for i in (0, 1, 0, *range(2, 28))][-1] == "ab"


def committed() -> list:
    """Tables in the repository, with the rows they were made from (tracked files only)."""
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    return [
        name
        for name in listed
        if name.startswith("results/tables/") and name.endswith((".md", ".tex", ".csv")) and "table4" not in name
    ]


@pytest.mark.parametrize("name", committed())
def test_committed_tables_follow_from_committed_rows(name):
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    files = [ROOT / f for f in listed if f.count("/") == 1 and f.endswith(".jsonl")]
    stem, _, suffix = name.rpartition("/")[2].rpartition(".")
    table, kind, *protocol = stem.split("-")
    models = settings.load()[table][kind].models
    arguments = type("A", (), {"model": models[0], "protocol": protocol[0] if protocol else None})
    made = tables.build(*choose.chosen(table, arguments), cells.load_rows(files))
    assert made[f".{suffix}"] == (ROOT / name).read_text(encoding="utf-8")


def test_csv_holds_every_cell(tmp_path):
    frame = long_form(tmp_path, row("gqa", 62.0))
    assert len(frame) == 22 * 10
    again = pd.read_csv(io.StringIO((tmp_path / "table1-paper.csv").read_text()))
    assert list(again.columns)[:3] == ["tokens", "method", "label"]
