"""Figures: scores equal those of the methods, drawings follow from their data and are the same twice, refusals."""

import argparse

import numpy as np
import pytest

import visiondrop
from figures import figure1, figure2, figure3, figure4, figure5, figure6
from figures.accuracy_tokens import draw as draw_tokens
from figures.data import captures as stored
from figures.data import cells, choose, measured, pages, settings
from figures.data.probe import RULES, Probe, top
from figures.data.scenes import Scenes
from figures.look import pictures, style, values
from figures.reproduce import capture, make, runs, timings
from testbed.training.export import export_checkpoint
from testbed.training.model import Sizes, init_weights
from tests.support.results_rows import MODEL, row, write

SMALL = Sizes(vision_width=32, vision_layers=3, vision_heads=2, vision_mlp=64, width=32, layers=12, heads=2, mlp=64)
DRAW = {"figure1": figure1.draw, "figure3": figure3.draw, "figure4": figure4.draw}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A testbed-shaped checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("model") / "testbed"
    export_checkpoint(init_weights(SMALL, 0), SMALL, folder)
    return folder


@pytest.fixture(scope="module")
def probe(checkpoint):
    return Probe(str(checkpoint))


@pytest.fixture(scope="module")
def scenes():
    return Scenes(None, None, 336)


@pytest.fixture(scope="module")
def captures(probe, scenes):
    """figure -> (arrays, about), as they would be read from files."""
    made = {"figure1": figure1.capture(probe, scenes), "figure3": figure3.capture(probe, Scenes(None, None, 336, 6))}
    made["figure4"] = figure4.capture(probe, scenes)
    return {name: (found, {**probe.identity(), **found.pop("about")}) for name, found in made.items()}


@pytest.mark.parametrize("layer", [1, 6])
@pytest.mark.parametrize(
    ("rule", "options"), [("text", {}), *((m, {"score": "visual", "score_mask": m}) for m in RULES[1:])]
)
def test_probe_gives_the_scores_of_the_methods(probe, scenes, layer, rule, options):
    image, asked = next(iter(scenes))
    found = probe.received(image, asked[0][0], layer, (rule,))[rule]
    settings_of = {"layers": (layer,), "ratio": 0.25, **options}
    with visiondrop.apply(probe.model, method="pyramiddrop", report=True, options=settings_of) as handle:
        probe.prefill(image, asked[0][0])
        stage = handle.report.stages[-1]
    assert stage.layer == layer
    assert np.abs(found - stage.scores[0].numpy()).max() < 1e-6
    assert set(np.flatnonzero(top(found, 144))) == set(stage.kept().tolist())


def test_captures_hold_what_the_drawings_need(captures):
    arrays, about = captures["figure3"]
    assert arrays["kept"].sum(axis=2).tolist() == [[144] * 4] * 5 and about["pictures"] == 6
    assert arrays["retention"].sum(axis=1) == pytest.approx([144] * 4)
    arrays, about = captures["figure4"]
    plan = visiondrop.plan("pyramiddrop", figure4.BUDGET, layers=12)
    assert arrays["kept"].sum(axis=2).tolist() == [plan.counts[1:]] * 2 and about["at"] == [
        s.layer for s in plan.stages
    ]
    assert not (arrays["needed"][0] & arrays["needed"][1]).any()
    assert (arrays["kept"][:, 1] <= arrays["kept"][:, 0]).all()
    assert captures["figure1"][1]["at"] == [3, 6, 9]


@pytest.mark.parametrize("name", DRAW)
def test_captured_figures_are_equal_twice(captures, tmp_path, name):
    for turn in ("one", "two"):
        DRAW[name](*captures[name], name, tmp_path / turn)
    for suffix in ("pdf", "png", "txt"):
        assert (tmp_path / "one" / f"{name}.{suffix}").read_bytes() == (
            tmp_path / "two" / f"{name}.{suffix}"
        ).read_bytes()


def test_a_capture_survives_its_file(probe, captures, tmp_path, capsys):
    arrays, about = captures["figure1"]
    capture.write({**arrays, "about": about}, probe, tmp_path / "figure1-testbed.npz")
    again, told = stored.read(tmp_path / "figure1-testbed.npz")
    assert told["question"] == about["question"] and (again["text"] == arrays["text"]).all()
    assert figure1.draw.main(["--data", str(tmp_path / "figure1-testbed.npz"), "--out", str(tmp_path)]) == 0
    (tmp_path / "figure1-testbed.npz").write_bytes(b"PK torn")
    assert figure1.draw.main(["--data", str(tmp_path / "figure1-testbed.npz")]) == 2
    assert figure1.draw.main(["--data", str(tmp_path / "none.npz")]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2 and all(e.startswith("error: ") for e in errors)


def test_bias_in_numbers():
    even = figure3.bias(np.full(16, 0.25), 4)
    assert even["mean_row"] == pytest.approx(0.5) and even["quarters"] == [0.25] * 4 and even["spearman"] == 0
    top_only = figure3.bias(np.repeat([1.0, 0, 0, 0], 4), 4)
    assert top_only["mean_row"] == 0 and top_only["quarters"] == [1, 0, 0, 0] and top_only["spearman"] < -0.7
    assert figure3.bias(np.arange(16.0), 4)["spearman"] == pytest.approx(1)


def test_ranks_of_ties():
    # Ranks 2.5, 0, 2.5, 1 against 0 … 3: covariance -1, variances 4.5 and 5.
    assert figure3.bias(np.array([3.0, 1.0, 3.0, 2.0]), 2)["spearman"] == pytest.approx(-1 / 22.5**0.5)


@pytest.mark.parametrize(
    ("method", "tokens"), [("visiondrop", 64), ("visiondrop", 32), ("fastv", 64), ("visionzip", 128), ("none", None)]
)
def test_pipeline_shows_the_plan(tmp_path, method, tokens):
    plan = visiondrop.plan(method, tokens)
    found = figure5.columns(plan)
    assert [c["count"] for c in found[1:]] == plan.counts and found[0]["count"] == 576
    assert [c["contextual"] for c in found[1:]] == [
        plan.encoder.contextual if plan.encoder else 0,
        *(s.contextual for s in plan.stages),
    ]
    figure5.draw(plan, "figure5", tmp_path)
    assert (tmp_path / "figure5.txt").read_text() == f"{plan.ledger()}\n"


def test_outline_surrounds_the_patches():
    from figures.look.style import plt

    _, axes = plt.subplots()
    pictures.outline(axes, np.array([0, 1, 1, 0, 0, 1, 0, 0, 0], dtype=bool), 30)
    assert len(axes.collections[0].get_paths()) == 8  # three patches in an L: 12 sides less 2 shared pairs
    plt.close()


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    """Offline rows of every arm on the four benchmarks, with numbers nobody measured."""
    made, seen = [], set()
    for name in ("figure2", "figure6", "table1"):
        variant = settings.load()[name]["paper"]
        for column in settings.load()["figure2"]["paper"].columns:
            for entry in variant.entries:
                key = (column.benchmark, entry.method, entry.tokens, str(entry.options))
                if key in seen:
                    continue
                seen.add(key)
                options = [f"{k}={v}" for k, v in entry.options.items()]
                made.append(
                    row(
                        column.benchmark,
                        60.0 - 500 / entry.tokens,
                        entry.method,
                        entry.tokens,
                        protocol="offline",
                        options=options,
                    )
                )
    return write(tmp_path_factory.mktemp("rows"), *made)


ROWS = {
    "figure2": ("figure2", figure2.draw),
    "figure6": ("figure6", figure6.draw),
    "accuracy_tokens": ("table1", draw_tokens),
}


@pytest.mark.parametrize("name", ROWS)
def test_figures_of_rows(rows_file, tmp_path, name):
    table, draw = ROWS[name]
    arguments = ["--model", MODEL, "--protocol", "offline", "--results", str(rows_file), "--out"]
    for turn in ("one", "two"):
        assert draw.main([*arguments, str(tmp_path / turn)]) == 0
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert [f.rpartition(".")[2] for f in files] == ["pdf", "png", "txt"]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert "52.19" in (tmp_path / "one" / files[2]).read_text() or "%" in (tmp_path / "one" / files[2]).read_text()


@pytest.mark.parametrize("name", ["figure2", "figure6", "accuracy-tokens", "accuracy-time"])
def test_committed_figures_follow_from_committed_rows(name, tmp_path):
    folder = settings.ROOT / "results"
    rows_given = ["--results", str(folder / "testbed.jsonl")]
    assert make.main([name, "--draw-only", "--folder", str(tmp_path), *rows_given]) == 0
    text = f"{name}-testbed.txt"
    assert (tmp_path / text).read_text() == (folder / "figures" / text).read_text()


@pytest.mark.parametrize("name", ROWS)
def test_no_rows_is_one_sentence(tmp_path, capsys, name):
    table, draw = ROWS[name]
    arguments = ["--model", MODEL, "--results", str(write(tmp_path, row("gqa", 60.0))), "--out", str(tmp_path)]
    assert draw.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: there are no rows of liuhaotian/llava-v1.5-7b")
    assert not list(tmp_path.glob("*.png"))


def test_overall_is_the_mean_ratio_with_combined_intervals(rows_file):
    from figures.data import cells

    variant, model = settings.variant("figure2", MODEL)
    lines = cells.long_table(variant, model, cells.load_rows([rows_file]))
    found, what = values.overall(variant, lines)
    base, ours = 60 - 500 / 576, 60 - 500 / 64
    number = next(i for i, e in enumerate(variant.entries) if e.tokens == 64)
    assert found.loc[number, "ours"] == pytest.approx(100 * ours / base) and "GQA, MMB, MMB-CN, POPE" in what
    assert found.loc[number, "high"] - found.loc[number, "ours"] == pytest.approx(
        100 / base / 2
    )  # four equal ones: 1 / sqrt(4)


def arguments(**changes):
    base = {
        "model": MODEL,
        "protocol": "offline",
        "results": None,
        "force": False,
        "data": None,
        "device": None,
        "more": [],
    }
    return argparse.Namespace(**base | changes)


def test_only_missing_runs_are_planned(rows_file, tmp_path):
    assert not runs.plan_runs(["figure2"], arguments(results=[rows_file]))
    found = runs.plan_runs(["figure2"], arguments(results=[write(tmp_path, row("gqa", 60.0, protocol="offline"))]))
    assert len(found) == 4 * 10 - 1 and ("gqa", "none") not in {(r.benchmark, r.entry.method) for _, r in found}
    again = runs.plan_runs(["figure2", "figure6"], arguments(results=[rows_file], force=True))
    assert len({(r.benchmark, r.entry.method, r.entry.tokens, r.options) for _, r in again}) == len(again)
    assert "GPU hours on one RTX 3090" in runs.cost(found) and runs.cost([]) == "every row is there: nothing to run"


def test_random_is_run_with_five_seeds():
    entry = settings.Entry("random", "random", 64)
    assert runs.options_of(entry) == [(f"seed={i}",) for i in range(5)]


def test_command_of_a_run():
    variant, _ = settings.variant("figure2", MODEL)
    entry = settings.Entry("pyramiddrop", "x", 64, {"score": "visual"})
    run = runs.Run("gqa", entry, runs.options_of(entry)[0])
    line = runs.eval_arguments(variant, run, arguments(device="cuda", more=["--limit", "8"]))
    assert line == [
        "gqa",
        "--method",
        "pyramiddrop",
        "--tokens",
        "64",
        "--option",
        "score=visual",
        "--model",
        MODEL,
        "--protocol",
        "offline",
        "--device",
        "cuda",
        "--limit",
        "8",
    ]


def test_the_testbed_shares_caches_where_the_method_reads_no_question():
    variant, _ = settings.variant("figure2")
    for options, shared in (({"score": "visual"}, True), ({}, False)):
        run = runs.Run("testbed", settings.Entry("pyramiddrop", "x", 64, options), ())
        line = runs.eval_arguments(variant, run, arguments(model=None))
        assert line[line.index("--reuse") + 1] == ("on" if shared else "off") and "--batch-size" in line


def test_dry_run_says_the_cost_and_runs_nothing(capsys):
    assert make.main(["table1", "--model", MODEL, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "GPU hours" in out and "gqa --method visiondrop --tokens 32" in out


def test_a_model_of_another_table_is_refused(capsys):
    assert make.main(["table2", "--model", MODEL, "--draw-only"]) == 2
    assert "is a model of table1" in capsys.readouterr().err


def test_own_pictures(probe, tmp_path, capsys):
    from PIL import Image

    file = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(file)
    base = ["--model", probe.path, "--image", str(file), "--out", str(tmp_path)]
    assert capture.main(["figure3", *base, "--question", "What is this?"]) == 0
    arrays, about = stored.read(tmp_path / "figure3-testbed.npz")
    assert arrays["images"].shape == (1, 336, 336, 3) and about["pictures"] == 1
    figure3.draw(arrays, about, "figure3", tmp_path)
    assert capture.main(["figure4", *base, "--question", "What is this?"]) == 2
    assert "needs two questions" in capsys.readouterr().err
    assert capture.main(["figure4", *base, "--question", "What is this?", "--question", "Where is it?"]) == 0
    assert (
        capture.main(["figure1", "--model", probe.path, "--image", str(tmp_path / "none.png"), "--out", str(tmp_path)])
        == 2
    )
    assert "none.png" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(pages.every()))
def test_every_name_draws_or_says_what_is_missing(name, tmp_path, monkeypatch, capsys):
    """With no rows, captures or timings: tables have dashes, the plan's figure is drawn, all else is refused."""
    monkeypatch.setattr(choose, "RESULTS", tmp_path)
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    code = make.main([name, "--draw-only", "--folder", str(tmp_path)])
    told = capsys.readouterr()
    if name.startswith("table") or name in ("controls", "pretrained", "grounded", "figure5"):
        assert code == 0 and list(tmp_path.iterdir())
    else:
        assert code == 2 and "error: there " in told.err and not list(tmp_path.iterdir())


def test_a_method_nobody_listed_appears_with_its_rows(tmp_path):
    variant, model = settings.variant("figure2", MODEL)
    unseen = row("gqa", 55.0, "random", 64)
    table = settings.variant("table1", MODEL)[0]
    rows_of = cells.load_rows([write(tmp_path, row("gqa", 60.0), unseen)])
    grown = cells.with_new_methods(table, model, rows_of)
    (new,) = set(grown.entries) - set(table.entries)
    assert (new.method, new.tokens) == ("random", 64) and grown.entries[-1].tokens == 32
    lines = cells.long_table(grown, model, rows_of)
    assert lines[(lines["method"] == "random") & (lines["column"] == "gqa")]["ours"].tolist() == [55.0]
    # the paper's numbers stay with their own rows
    mine = lines[lines["column"] == "gqa"].set_index(["tokens", "method"])["paper"]
    assert mine.loc[(32, "visiondrop")] == 52.79 and np.isnan(mine.loc[(64, "random")])
    # a figure of chosen arms does not grow
    assert cells.with_new_methods(variant, model, rows_of) == variant


def test_a_new_method_has_a_look_and_a_label_of_its_own():
    assert settings.label_of("visionzip") == "VisionZip" and settings.label_of("nobody") == "nobody"
    assert settings.label_of("sparsevlm") == "SparseVLM v1.5" and settings.label_of("uniform") == "uniform"
    looks = {name: style.of_method(name) for name in ("dart", "divprune", "cdpruner", "mine", "a", "b")}
    assert len(set(looks.values())) == 6 and looks["dart"] == style.of_method("dart")
    assert all(style.contrast(color) >= 3 and marker in style.SPARE for color, marker, _ in looks.values())
    assert style.contrast("#FFFFFF") == pytest.approx(1) and style.contrast("#000000") == pytest.approx(21)


def test_timings_are_those_of_the_methods_that_table_1_ranks():
    first = ["visionzip", "vispruner", "divprune", "scope", "hiprune", "flowcut"]
    assert timings.arms() == {
        "192,128,64": [
            *("none", "fastv", "pyramiddrop", "sparsevlm", *first, "vscan"),
            *("holov", "prunesid", "dart", "prumerge", "visiondrop"),
        ],
        "32": [*first, "holov", "prunesid", "prumerge", "visiondrop"],
    }


def test_an_entry_that_cannot_be_run_has_dashes_with_its_reason_and_is_not_asked_for():
    variant = settings.load()["table1"]["testbed"]
    entry = next(e for e in variant.entries if e.method == "cdpruner")
    empty = cells.load_rows([])
    found, reason = cells.pick(empty, variant, "testbed", entry, variant.columns[0])
    assert found.empty and reason == entry.absent != ""
    assert "cdpruner" not in {run.entry.method for run in runs.lacking(variant, "testbed", empty)}
