"""Runs that prune nothing: caught by what the decoder sees, and by the answers."""

import pandas as pd
import pytest
import torch

import visiondrop
from eval.errors import EvaluationError
from eval.models import hub, lengths
from eval.results import unpruned
from figures.data import cells, settings
from tests.eval.test_checkpoint import write_answering_checkpoint
from tests.eval.test_run import Place
from tests.support import datasets_small, hub_families, results_rows

N = 24


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    write_answering_checkpoint(made.model, ("Yes", "No"))
    datasets_small.write_pope(made.data, N)
    return made


def forget_to_prune(monkeypatch):
    """A port as the audit found four: the plan and its ledger are there, the model runs as before."""
    apply = visiondrop.apply

    def sham(model, *args, **more):
        handle = apply(model, *args, **more)
        handle.remove()
        return handle

    monkeypatch.setattr(visiondrop, "apply", sham)


@pytest.mark.parametrize("more", [(), ("--batch-size", 3), ("--reuse", "on", "--batch-size", 4)])
def test_a_decoder_that_sees_everything_stops_the_run(place, monkeypatch, capsys, more):
    method = ("--method", "visionzip") if more and more[0] == "--reuse" else ()
    assert place.run("pope", "--tokens", 16, *method, *more) == 0  # the true method passes
    before = len(place.rows("pope"))
    forget_to_prune(monkeypatch)
    assert place.run("pope", "--tokens", 15, *method, *more) == 2
    assert "does not see what the ledger says" in capsys.readouterr().err
    assert len(place.rows("pope")) == before


@pytest.mark.parametrize("more", [("--batch-size", 3), ("--reuse", "on", "--batch-size", 4)])
def test_what_is_kept_is_held_against_a_uniform_choice(place, more):
    """Uniform is like itself; random has chance in common with it; nothing is told of the unpruned model."""
    told = {}
    for method, tokens in (("uniform", 16), ("random", 16), ("visionzip", 16), ("none", None)):
        budget = () if tokens is None else ("--tokens", tokens)
        assert place.run("pope", "--method", method, *budget, *more) == 0
        told[method] = place.rows("pope")[-1]["unlike_uniform"]
    assert told["uniform"] == 0 and told["none"] is None
    assert 0.4 < told["random"] < 1 and 0 < told["visionzip"] <= 1  # 16 of 64: chance leaves three quarters unlike


def test_equal_answers_are_flagged_and_others_counted(place, monkeypatch, capsys):
    assert place.run("pope", "--tokens", 15) == 0
    assert place.rows("pope")[-1]["changed"] is None  # nothing to compare with yet
    assert place.run("pope", "--method", "none") == 0
    base = place.rows("pope")[-1]
    assert base["changed"] is None
    assert place.run("pope", "--tokens", 14) == 0
    row = place.rows("pope")[-1]
    said = [[s["answer"] for s in place.samples(r)] for r in (row, base)]
    assert row["changed"] == sum(a != b for a, b in zip(*said, strict=True)) / N > 0
    assert unpruned.suspicion(row) is None
    forget_to_prune(monkeypatch)
    monkeypatch.setattr(lengths, "check", lambda *args: None)
    assert place.run("pope", "--tokens", 13) == 0
    sham = place.rows("pope")[-1]
    assert sham["changed"] == 0 and "did it prune?" in unpruned.suspicion(sham)
    assert "did it prune?" in capsys.readouterr().out


def test_the_check_of_lengths():
    lengths.check([70, 70, 40, 40], [64, 64, 34, 34], 6)
    for seen, words in (
        ([70, 70, 70, 70], "layer 2 gets 70"),
        ([71, 71, 41, 41], "layer 0 gets 71"),
        ([0] * 4, "layer 0 gets 0"),
    ):
        with pytest.raises(EvaluationError, match=words):
            lengths.check(seen, [64, 64, 34, 34], 6)
    lengths.check_fewer([50, 30], 50, 10, 40)
    with pytest.raises(EvaluationError, match="all 50 tokens"):
        lengths.check_fewer([50, 50], 50, 10, 40)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_models_of_transformers_are_checked_too(name):
    model, picture = hub_families.build(name), hub_families.picture(name, 0)
    inputs = hub_families.inputs(name, [[hub_families.text(0, 4), picture, hub_families.text(1, 5)]])
    handle = visiondrop.apply(model, "visiondrop", "50%")
    watched = hub.Watched(model, handle.ledger)
    watched.generate(**inputs, max_new_tokens=1)
    handle.remove()
    watched = hub.Watched(model, handle.ledger)
    with pytest.raises(EvaluationError, match="does not prune"), torch.inference_mode():
        watched.generate(**inputs, max_new_tokens=1)


def test_tables_say_so():
    """A cell of a row in which nothing changed at a ninth of the tokens has a note; one in which something did has none."""
    variant, model = settings.variant("table1", results_rows.MODEL)
    entry = next(e for e in variant.entries if e.method == "visiondrop" and e.tokens == 64)
    column = next(c for c in variant.columns if c.benchmark == "gqa")
    for changed, note in (
        (0.0, "no answer differs from the unpruned model's at 11 % of the tokens: did it prune?"),
        (0.1, ""),
    ):
        table = pd.DataFrame([results_rows.row("gqa", 60.0, "visiondrop", 64, changed=changed)])
        table["settings"] = "{}"
        assert cells.cell(table, variant, model, entry, column, {})["note"] == note
