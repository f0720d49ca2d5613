"""A run's settings: identities of committed rows stay, and a declaration is all that a new switch needs."""

import argparse
import dataclasses
import glob

import pytest

import eval.settings as module
from eval.files import ROOT
from eval.results import rows
from eval.settings import Settings, add_flags, given, row_fields, setting

BASE = {
    "benchmark": "gqa",
    "protocol": "offline",
    "task": "gqa",
    "method": "visiondrop",
    "tokens": 64,
    "options": {"merge": "off"},
    "model": "/m",
    "model_name": "m",
    "model_fingerprint": "0" * 16,
    "data": None,
    "data_fingerprint": "hub",
    "limit": None,
    "batch_size": 1,
    "processes": 1,
    "dtype": "float32",
    "device": "cpu",
    "attention": "sdpa",
    "conversation": "vicuna_v1",
    "seed": 0,
    "runs": "/r",
    "out": "/o",
}


@pytest.mark.parametrize(
    ("changes", "run"),
    [
        ({}, "1b9a871f58eb"),
        ({"reuse": "on", "compile": "on"}, "7fdaac68d7a3"),
        ({"layout": "anyres", "device": "cuda:1", "limit": 8}, "15d96bf866bb"),
        ({"judge_url": "http://j/v1", "judge_model": "j", "processes": 2, "tokens": None}, "3beceada6b18"),
    ],
)
def test_identities_of_earlier_runs_stay(monkeypatch, changes, run):
    """The hashes are those of version 0.2.0: a run begun then goes on, and its row is known."""
    monkeypatch.setattr(module, "version_of", lambda package: "1")
    settings = Settings(**{**BASE, **changes})
    assert settings.run == run
    budget = "settings" if settings.tokens is None else settings.tokens
    assert str(settings.folder) == f"/r/gqa-offline-m-visiondrop-{budget}-{run}"
    assert Settings.from_json(settings.to_json()) == settings


def test_one_declaration_gives_flag_check_and_row_field(monkeypatch):
    """A switch added to the class: nothing else is touched."""

    @dataclasses.dataclass(frozen=True)
    class Longer(Settings):
        zeal: int = setting("how hard it tries", 1, flag="--zeal", kind=int, least=1, identity="given", added=True)

    monkeypatch.setattr(module, "Settings", Longer)
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert "how hard it tries" in parser.format_help()
    assert given(parser.parse_args(["gqa", "--zeal", "3"])) == {"benchmark": "gqa", "zeal": 3}
    with pytest.raises(module.EvaluationError, match="--zeal 0: give a number of at least 1"):
        given(parser.parse_args(["gqa", "--zeal", "0"]))
    assert row_fields()["zeal"] == ((int,), "how hard it tries") and "zeal" in module.added_row_fields()
    usual, other = (Longer(**BASE, zeal=zeal) for zeal in (1, 3))
    assert usual.run == Settings(**BASE).run != other.run and other.row()["zeal"] == 3


def test_committed_rows_have_the_fields_that_are_declared():
    files = {*glob.glob(str(ROOT / "results" / "*.jsonl"))} - {str(ROOT / "results" / "local.jsonl")}  # a user's own
    assert files
    for file in files:
        found, problems = rows.load(file)
        assert found and not problems
        assert all(set(rows.FIELDS) - set(row) <= set(rows.ADDED) for row in found)
