"""The comparisons behind the findings, and the README's tables, on made-up runs."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

import visiondrop
from eval.results import rows
from figures import comparisons
from figures.data import settings
from figures.reproduce import readme
from tests.support.results_rows import row


@pytest.fixture
def runs(tmp_path):
    """VisionDrop, VisionZip and random on a made-up testbed, with single answers."""
    rng, file = np.random.default_rng(0), tmp_path / "rows.jsonl"
    arms = [("none", None, [], 0.95), ("visiondrop", 64, [], 0.9), ("visionzip", 64, [], 0.6)]
    arms += [("random", 64, [f"seed={i}"], s) for i, s in enumerate((0.3, 0.9))]
    kinds = [c.metric for c in settings.load()["figure2"]["testbed"].columns if c.metric]
    for number, (method, tokens, options, share) in enumerate(arms):
        made = row(
            "testbed",
            50.0,
            method,
            tokens,
            protocol="offline",
            model="testbed",
            options=options,
            metrics=dict.fromkeys(kinds, 0.5),
        )
        made = rows.seal({**made, "folder": f"run{number}"})
        rows.append(file, made)
        (tmp_path / "runs" / f"run{number}").mkdir(parents=True)
        (tmp_path / "runs" / f"run{number}" / "row.json").write_text(json.dumps(made))
        with open(tmp_path / "runs" / f"run{number}" / "samples.jsonl", "w") as stream:
            for i in range(280):
                right = float(rng.random() < share)
                metrics = {"exact_match": right, kinds[i % 7]: right}
                line = {
                    "doc_id": i,
                    "target": "x",
                    "doc": {"image_id": i // 4},
                    "prompt": "?",
                    "answer": "x",
                    "metrics": metrics,
                }
                stream.write(json.dumps(line) + "\n")
    return tmp_path


def test_pairs_with_answers_are_compared(runs):
    arguments = ["--results", str(runs / "rows.jsonl"), "--runs", str(runs / "runs"), "--out", str(runs / "out")]
    assert comparisons.main(arguments) == 0
    frame = pd.read_csv(runs / "out" / "testbed.csv")
    every = frame[frame["questions"] == "all"]
    assert len(every) == 6 and len(frame) == 6 * 8
    overall = every[every["a"] == "visiondrop"].set_index("b")
    assert set(overall.index) == {"visionzip", "none", "random seed=0"} and (overall["tokens"] == 64).all()
    assert overall.loc["visionzip", "low"] > 0 and overall.loc["random seed=0", "difference"] > 40
    assert (every["p_holm"] >= every["p"]).all()
    assert frame[frame["questions"] != "all"]["p_holm"].isna().all()
    text = (runs / "out" / "testbed.md").read_text()
    assert "## staged pruning beats pruning after the encoder only" in text and "merging helps" not in text
    assert comparisons.main(arguments) == 0 and (runs / "out" / "testbed.md").read_text() == text


def test_nothing_to_compare_is_one_sentence(tmp_path, runs, capsys):
    arguments = ["--results", str(runs / "rows.jsonl"), "--runs", str(tmp_path / "nowhere"), "--out", str(tmp_path)]
    assert comparisons.main(arguments) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: there are no two runs of testbed")


def test_answers_of_a_run_done_again_count_and_lines_without_answers_stay(runs):
    """Answers gone: the lines stay.  Done again in another folder: same lines.  With other metrics: not the row's answers.
    A newer row in force: its old lines go."""
    where = ["--results", str(runs / "rows.jsonl"), "--out", str(runs / "out"), "--runs"]
    file = runs / "out" / "testbed.csv"
    assert comparisons.main([*where, str(runs / "runs")]) == 0
    first = file.read_text()
    assert comparisons.main([*where, str(runs / "nowhere")]) == 0 and file.read_text() == first
    again = runs / "again"
    (runs / "runs").rename(again)
    for number in range(5):
        folder = (again / f"run{number}").rename(again / f"more{number}")
        made = json.loads((folder / "row.json").read_text())
        del made["checksum"]
        (folder / "row.json").write_text(
            json.dumps(rows.seal({**made, "folder": folder.name, "run": f"{number:012d}"}))
        )
    file.unlink()
    assert comparisons.main([*where, str(again)]) == 0 and file.read_text() == first
    changed = json.loads((again / "more2" / "row.json").read_text())
    changed["metrics"] = {**changed["metrics"], "color": 0.25}
    (again / "more2" / "row.json").write_text(json.dumps(changed))
    file.unlink()
    assert comparisons.main([*where, str(again)]) == 0
    assert "visionzip" not in set(pd.read_csv(file)["b"]) | set(pd.read_csv(file)["a"])
    (runs / "out" / "testbed.csv").write_text(first)
    del changed["checksum"]
    rows.append(runs / "rows.jsonl", rows.seal({**changed, "folder": "elsewhere"}))
    assert comparisons.main([*where, str(runs / "nowhere")]) == 0
    assert "visionzip" in first and "visionzip" not in set(pd.read_csv(file)["b"]) | set(pd.read_csv(file)["a"])


def test_holm_by_hand():
    found = comparisons.holm(pd.Series([0.01, None, 0.04, 0.03], dtype=float))
    assert found.tolist()[0] == pytest.approx(0.03) and found.tolist()[2:] == pytest.approx([0.06, 0.06])
    assert pd.isna(found[1])


def test_every_listed_run_belongs_to_a_table_or_figure():
    raw = yaml.safe_load(comparisons.FILE.read_text())
    for kind, layers in (("testbed", 12), ("paper", 32)):
        made = {
            (e.method, e.tokens, str({k: v for k, v in e.options.items() if k != "seed"}))
            for name in ("table1", "figure2", "figure6", "controls")
            if kind in settings.load()[name]
            for e in settings.load()[name][kind].entries
        }
        for _, a, b, tokens in comparisons.pairs(raw, "figure2"):
            for words in (a, b):
                entry = comparisons.entry_of(words, tokens)
                visiondrop.plan(entry.method, None if entry.is_base else tokens, layers=layers, options=entry.options)
                plain = str({k: v for k, v in entry.options.items() if k != "seed"})
                if kind == "testbed" and not entry.is_base:
                    assert (entry.method, tokens, plain) in made, words


def test_claims_about_one_table_are_compared_for_it_alone():
    raw = yaml.safe_load(comparisons.FILE.read_text())
    variant = settings.load()["pretrained"]["testbed"]
    shown = {(e.method, e.tokens) for e in variant.entries}
    both, base = comparisons.pairs(raw, "pretrained"), comparisons.pairs(raw, "figure2")
    more = [pair for pair in both if pair not in base]
    assert set(base) < set(both) and {tokens for *_, tokens in more} == {192, 128, 64}
    assert all((words.split()[0], tokens) in shown for _, a, b, tokens in more for words in (a, b))


def test_readme_tables_come_from_files(tmp_path, capsys):
    (tmp_path / "table1-testbed.md").write_text("# Table 1: x\n\n| a |\n| --- |\n| 1 |\n")
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- table1-testbed -->\nold\n<!-- end table1-testbed -->\nafter\n")
    arguments = ["--file", str(file), "--tables", str(tmp_path)]
    assert readme.main([*arguments, "--check"]) == 2 and readme.main(arguments) == 0
    assert (
        "**Table 1: x**\n\n| a |" in file.read_text()
        and "old" not in file.read_text()
        and file.read_text().endswith("after\n")
    )
    assert readme.main([*arguments, "--check"]) == 0
    file.write_text("<!-- table9 -->\n<!-- end table9 -->\n")
    assert readme.main(arguments) == 2 and "table9" in capsys.readouterr().err
