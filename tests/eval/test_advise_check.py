"""eval.advise_check holds what `visiondrop advise` itself finds, in one pass over batches; its ranks are scipy's."""

import json

import pytest
import torch

import visiondrop
from eval import advise_check
from eval.efficiency import record
from eval.files import ROOT
from eval.results import rows
from visiondrop.advice.samples import read_samples
from visiondrop.families import loader

KNOWN = ROOT / "results" / "testbed.jsonl"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(the check's table of 30 questions, what `advise` finds on the same ones), three settings."""
    folder, patch = tmp_path_factory.mktemp("check"), pytest.MonkeyPatch()
    patch.setattr(advise_check, "METHODS", ("visiondrop", "fastv", "uniform"))
    patch.setattr(advise_check, "TOKENS", (64,))
    out = folder / "rows.jsonl"
    model = "checkpoints/testbed"
    advise_check.measure(model, "testbed_validation", 10, folder / "run", out)
    advise_check.measure(model, "testbed_validation", 30, folder / "run", out)  # goes on
    samples = read_samples("testbed_validation", limit=30)[0]
    loaded = loader().load(model, torch.float32)
    found = visiondrop.advise(
        *(loaded, samples), methods=advise_check.METHODS, tokens=[64], out=folder / "advise", progress=False
    )
    patch.undo()
    return advise_check.Table(record.load([out]), rows.load(KNOWN, strict=True)[0]), found, folder


def test_a_draw_is_what_advise_finds(measured):
    table, advice, folder = measured
    theirs = {s.name: s for s in advice.found[1:]}
    assert len(theirs) == 3
    for mine in table.found(range(30), 0.01):
        its = theirs[mine.name]
        assert (mine.agreement, mine.interval, mine.same_answers) == (its.agreement, its.interval, its.same_answers)
        assert (mine.samples, mine.dropped, mine.tflops) == (its.samples, its.dropped, its.tflops)
        assert mine.kl == pytest.approx(its.kl, abs=1e-5)
    best = advise_check.recommend(table.found(range(30), 0.01), 0.01)
    assert (best.name if best else None) == (advice.best.name if advice.best else None)
    lines = [json.loads(line) for line in (folder / "run" / "rows.jsonl").read_text().splitlines()]
    cells = [(line["sample"], line["setting"]) for line in lines if line["kind"] == "cell"]
    assert len(cells) == len(set(cells)) == 90  # nothing was read twice


def test_the_page_follows_from_the_rows(measured, tmp_path, capsys):
    table = measured[0]
    out = tmp_path / "rows.jsonl"
    out.write_text((measured[2] / "rows.jsonl").read_text())
    assert advise_check.main(["--report", "--out", str(out)]) == 0
    assert (
        capsys.readouterr().out.strip()
        == advise_check.page(table).strip()
        == out.with_suffix(".md").read_text().strip()
    )


def test_ranks_of_an_order_that_is_accuracys_own():
    about = {"kind": "advise-questions", "model": "m", "date": "2026-01-01", "pictures": ["a", "b"], "tokens": [10, 10]}
    same = {"visionzip": 9, "fastv": 7, "uniform": 5, "pool": 1}
    lines = [about]
    for name, n in same.items():
        setting = {
            "kind": "advise-setting",
            "setting": f"{name}:64",
            "same": [n, n],
            "kl": [10.0 - n] * 2,
            "answer": [1, 1],
        }
        lines.append(setting | {"tflops": 1.0, "mean": 64.0})
    known = [{"model": "m", "options": {}, "partial": False, "method": "none", "tokens": None, "score": 99.0}]
    known += [{**known[0], "method": name, "tokens": 64, "score": 10.0 * n} for name, n in same.items()]
    table = advise_check.Table(lines, known)
    for column in ("same", "kl"):
        for value, low, high in advise_check.correlations(table, list(table.settings), column).values():
            assert value == pytest.approx(1) and high <= 1 + 1e-9 and low > 0


def test_the_committed_page_tells_the_committed_rows():
    lines = record.load([advise_check.OUT])
    table = advise_check.Table(lines, rows.load(KNOWN, strict=True)[0])
    told = advise_check.OUT.with_suffix(".md").read_text()
    assert len(table.settings) >= 20
    for name in table.settings:
        found = table.summary(name, range(len(table.questions["tokens"])))
        assert f"| {name} | {100 * found.agreement:.2f} % | {found.kl:.4f} |" in told
