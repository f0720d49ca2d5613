"""A group of benchmarks: cost before anything runs, only what is missing runs, one table that says why a cell is empty."""

import re

import pytest

from eval.results import rows
from figures import groups
from tests.eval.test_checkpoint import write_answering_checkpoint
from tests.support import datasets_more
from tests.support.results_rows import MODEL, row


@pytest.fixture
def place(tmp_path):
    write_answering_checkpoint(tmp_path / "words")
    for name in ("ai2d", "chartqa", "docvqa"):  # OCRBench's data are not there
        datasets_more.WRITERS[name](tmp_path / "data")
    return tmp_path


def make(place, *more) -> int:
    return groups.main(
        [
            *("--benchmark", "documents", "--tokens", "16", "--model", str(place / "words"), "--protocol", "offline"),
            *("--out", str(place / "rows.jsonl"), "--folder", str(place / "tables"), *more),
            *("--", "--data", str(place / "data"), "--runs", str(place / "runs")),
        ]
    )


def test_the_cost_comes_first_and_nothing_is_done_twice(place, capsys):
    assert make(place, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "10 runs to do, 29,476 questions" in shown and not (place / "rows.jsonl").exists()
    assert make(place) == 2  # OCRBench cannot be run
    made = rows.load(place / "rows.jsonl", strict=True)[0]
    assert len(made) == 8
    text = (place / "tables" / "documents-words-offline.md").read_text()
    assert text.count("—<sup>1</sup>") == 2 and "1. the run failed" in text
    for one in made:
        assert f"{one['score']:.2f} [" in text
    pruned = next(r for r in made if r["benchmark"] == "ai2d" and r["method"] == "visiondrop")
    base = next(r for r in made if r["benchmark"] == "ai2d" and r["method"] == "none")
    assert pruned["changed"] is not None
    if base["score"]:
        assert f"{100 * pruned['score'] / base['score']:.1f} %" in text
    assert make(place) == 2
    assert len(rows.load(place / "rows.jsonl")[0]) == 8


def test_a_table_is_a_function_of_its_rows():
    chosen = groups.arms(["visiondrop"], ["64"])
    found = [
        row("gqa", 62.0),
        row("gqa", 31.0, "visiondrop", 64, changed=0.0),
        row("pope", 85.0),
        row("pope", 80.0, "visiondrop", 64, questions="x" * 16),
        row("vqav2", None, "visiondrop", 64),
    ]
    text = groups.table("paper", MODEL, "paper", chosen, found, {})
    line = next(t for t in text.splitlines() if t.startswith("| visiondrop | 64"))
    first, notes = line.split("|")[3].strip(), re.findall(r"^\d\. (.*)$", text, re.M)
    assert (
        first
        == "31.00 [30.0, 32.0], 50.0 %<sup>"
        + str(notes.index(next(n for n in notes if "did it prune" in n)) + 1)
        + "</sup>"
    )
    assert (
        any("asked other questions" in n for n in notes) and any("scored by" in n for n in notes) and "not run" in notes
    )
    assert text == groups.table("paper", MODEL, "paper", chosen, found[::-1], {})
