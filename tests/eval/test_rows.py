"""Result rows: what is refused, what damage is noticed, and that no good row is lost to a bad one."""

import multiprocessing
import os

import pytest

from eval.errors import EvaluationError
from eval.results import rows
from tests.eval.test_answers import fill_disk
from tests.support.results_rows import blank


def make(number: int = 0, **changes):
    """A sealed row."""
    row = {
        **blank(),
        "run": f"{number:012x}",
        "folder": "f",
        "benchmark": "gqa",
        "protocol": "offline",
        "task": "gqa",
        "split": "testdev",
        "model": "m",
        "model_fingerprint": "0" * 16,
        "data": "hub",
        "questions": "q",
        "method": "visiondrop",
        "tokens": 64,
        "options": {},
        "ledger": {"mean": 64.0},
        "n": 10,
        "n_full": 12578,
        "limit": None,
        "partial": False,
        "score": 60.0 + number,
        "metrics": {"exact_match": 0.6},
        "interval": [50.0, 70.0],
        "interval_method": "b",
        "missing": [],
        "upload": [],
        "server": None,
        "dtype": "float32",
        "attention": "sdpa",
        "device": "cpu",
        "device_name": "c",
        "batch_size": 1,
        "reuse": "off",
        "compile": "off",
        "processes": 1,
        "seed": 0,
        "conversation": "vicuna_v1",
        "versions": {},
        "commit": "c",
        "dirty": False,
        "sessions": [],
        "date": "2026-01-01T00:00:00Z",
        "duration": 1.5,
    }
    return rows.seal({**row, **changes})


@pytest.fixture
def file(tmp_path):
    """A results file of three rows."""
    path = tmp_path / "results" / "local.jsonl"
    for i in range(3):
        rows.append(path, make(i))
    return path


def edit(path, number, change):
    lines = path.read_text().splitlines()
    lines[number - 1 : number] = change(lines[number - 1])
    path.write_text("".join(line + "\n" for line in lines))


def test_rows_come_back_as_they_were(file):
    assert rows.load(file) == ([make(i) for i in range(3)], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": "10"}, "n = '10' has the wrong type"),
        ({"score": float("nan")}, "not finite"),
        ({"partial": 1}, "partial"),
        ({"extra": 1}, "extra"),
    ],
)
def test_wrong_fields_cannot_be_recorded(changes, message):
    with pytest.raises(EvaluationError, match=message):
        make(**changes)


def test_missing_field_cannot_be_recorded(file):
    with pytest.raises(EvaluationError, match="missing ledger"):
        rows.append(file, {k: v for k, v in make().items() if k != "ledger"})
    assert len(rows.load(file)[0]) == 3


@pytest.mark.parametrize("name", ["reuse", "compile"])
def test_rows_from_before_a_field_are_whole_and_new_ones_need_it(tmp_path, name):
    old = {k: v for k, v in make().items() if k != name}
    with pytest.raises(EvaluationError, match=f"missing {name}"):
        rows.seal({k: v for k, v in old.items() if k not in ("schema", "checksum")})
    old["checksum"] = rows.checksum(old)
    rows.append(tmp_path / "rows.jsonl", old)
    rows.append(tmp_path / "rows.jsonl", make(1))
    assert rows.load(tmp_path / "rows.jsonl", strict=True)[0] == [old, make(1)]


@pytest.mark.parametrize(
    ("change", "line", "message", "good"),
    [
        (lambda x: [x.replace("61.0", "71.0")], 2, "changed after it was written", [0, 2]),
        (lambda x: [x[:100]], 2, "not a whole JSON line", [0, 2]),
        (lambda x: [x.replace('"tokens": 64', '"tokens": "64"')], 2, "wrong type", [0, 2]),
        (lambda x: [x.replace('"schema": 1', '"schema": 9')], 2, "schema 9", [0, 2]),
        (lambda x: [], 2, "removed or moved", [0, 2]),
        (lambda x: [x, x], 3, "removed or moved", [0, 1, 1, 2]),
    ],
)
def test_damage_is_named_with_its_line_and_spoils_no_other_row(file, change, line, message, good):
    edit(file, 2, change)
    found, problems = rows.load(file)
    assert [round(r["score"]) - 60 for r in found] == good
    assert len(problems) >= 1 and f"line {line}: " in problems[0] and message in problems[0]
    with pytest.raises(EvaluationError, match=f"line {line}"):
        rows.load(file, strict=True)


def test_torn_last_line_does_not_spoil_the_next_row(file):
    os.truncate(file, file.stat().st_size - 40)
    rows.append(file, make(3))
    found, problems = rows.load(file)
    assert [r["score"] for r in found] == [60, 61, 63] and len(problems) == 1 and "line 3" in problems[0]


def test_full_disk_leaves_the_file_as_it_was(file, monkeypatch):
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        fill_disk(patch, after=50)
        with pytest.raises(EvaluationError, match="disk is full.*it only writes the row"):
            rows.append(file, make(3))
    assert file.read_bytes() == before
    rows.append(file, make(3))
    assert len(rows.load(file, strict=True)[0]) == 4


def _append_many(path, first):
    for i in range(first, first + 20):
        rows.append(path, make(i))


def test_two_writers_lose_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(path, first)) for first in (0, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found, problems = rows.load(path)
    assert not problems and sorted(r["score"] - 60 for r in found) == [*range(20), *range(100, 120)]


def test_unreadable_and_unwritable_places_are_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot be written.*choose another --out"):
        rows.check_writable(tmp_path / "file" / "rows.jsonl")
    with pytest.raises(EvaluationError, match="cannot read results"):
        rows.load(tmp_path / "none.jsonl")


def test_listing_reports_problems(file, capsys):
    edit(file, 1, lambda x: [x.replace("60.0", "99.0")])
    assert rows.main([str(file)]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("visiondrop") == 2 and "line 1" in shown.err


def test_a_device_is_no_results_file():
    with pytest.raises(EvaluationError, match="not an ordinary file"):
        rows.check_writable("/dev/full")
