"""Budgets, plans and ledgers: numbers only, no model."""

import json
import subprocess
import sys

import pytest

import visiondrop
from visiondrop.plans.schedule import geometric, scale_layers, segment_lengths
from visiondrop.plans.shape import VisualShape

# configs/methods/visiondrop.yaml: encoder pair and stage pairs; the first row is the authors' own.
SCHEDULES = {
    32: [(42, 6), (30, 5), (22, 4), (16, 3)],
    64: [(84, 12), (61, 9), (45, 7), (33, 5)],
    128: [(168, 24), (123, 18), (90, 13), (66, 10)],
    192: [(252, 36), (184, 27), (135, 20), (99, 15)],
}


@pytest.mark.parametrize("tokens", SCHEDULES)
def test_published_and_derived_schedules(tokens):
    plan = visiondrop.plan("visiondrop", tokens)
    pairs = [(s.dominant, s.contextual) for s in (plan.encoder, *plan.stages)]
    assert pairs == SCHEDULES[tokens]
    assert [s.layer for s in plan.stages] == [8, 16, 24]


def test_every_reachable_budget_is_met_exactly():
    for tokens in range(3, 385):
        plan = visiondrop.plan("visiondrop", tokens)
        ledger = plan.ledger(text_tokens=50)
        assert ledger.mean == tokens
        assert ledger.cache_entries == 32 * (tokens + 50)
        assert len(ledger.tokens_per_layer) == 32 and plan.counts == sorted(plan.counts, reverse=True)
        assert all(s.dominant >= 1 for s in (plan.encoder, *plan.stages))
        assert ledger.as_dict()["mean"] == tokens and json.dumps(ledger.as_dict())


@pytest.mark.parametrize("tokens", [1, 2, 385, 576])
def test_other_budgets_are_refused_with_the_range(tokens):
    with pytest.raises(visiondrop.VisionDropError, match="3 … 384"):
        visiondrop.plan("visiondrop", tokens)


@pytest.mark.parametrize("layers", [4, 8, 12, 24, 30, 33, 40])
def test_other_depths_keep_the_mean(layers):
    for tokens in (32, 64, 100, 192):
        plan = visiondrop.plan("visiondrop", tokens, layers=layers)
        assert plan.ledger().mean == tokens
        assert [s.layer for s in plan.stages] == [round(layers * q / 4) for q in (1, 2, 3)]


def test_ablation_settings_are_plain_options():
    no_merge = visiondrop.plan("visiondrop", 128, merge="off")
    assert [s.contextual for s in (no_merge.encoder, *no_merge.stages)] == [0] * 4
    assert no_merge.counts == visiondrop.plan("visiondrop", 128).counts
    no_encoder = visiondrop.plan("visiondrop", 128, encoder="off", options={"layers": "2,8,16"})
    assert no_encoder.encoder is None and no_encoder.entry == 576 and no_encoder.ledger().mean == 128
    third = visiondrop.plan("visiondrop", 128, encoder_ratio=1 / 3)
    assert third.counts == visiondrop.plan("visiondrop", 128).counts
    half = visiondrop.plan("visiondrop", 128, encoder_ratio=0.5)
    assert half.entry == 288 and half.ledger().mean == 128
    even = visiondrop.plan("visiondrop", 64, dominant_ratio=0.5)
    assert (even.encoder.dominant, even.encoder.contextual) == (48, 48)
    assert visiondrop.plan("visiondrop", 64, score="text").text_guided
    assert not visiondrop.plan("visiondrop", 64).text_guided


def test_geometric_by_hand():
    # 8 + 4 + 2 + 1 = 15 is the series with r = 1/2 (nearest, residue 1).
    assert geometric((1, 1, 1, 1), 8, 15) == (8, 4, 2, 1)
    assert geometric((1, 1), 8, 20) is None
    assert geometric((2, 6, 8, 16), 576, 4096)[0] == 576
    assert segment_lengths((8, 16, 24), 32) == (8, 8, 8, 8)
    assert scale_layers((2,), 12) == (1,)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(tokens=0), "1 … 576"),
        (dict(tokens=-5), "1 … 576"),
        (dict(tokens=577), "1 … 576"),
        (dict(tokens=6.5), "whole number"),
        (dict(tokens=None), "needs a budget"),
        (dict(method="visondrop", tokens=64), "did you mean 'visiondrop'"),
        (dict(tokens=64, scroe="text"), "did you mean 'score'"),
        (dict(tokens=64, score="both"), "'visual', 'text'"),
        (dict(tokens=64, merge="maybe"), "'on' and 'off'"),
        (dict(tokens=64, encoder_ratio=1.5), "up to 1"),
        (dict(tokens=64, options={"layers": "a,b"}), "whole numbers"),
        (dict(tokens=64, options={"layers": "24,8"}), "ascending"),
        (dict(tokens=64, options={"layers": "8,16,40"}), "0 … 31"),
        (dict(tokens=128, encoder="off"), "reachable"),
    ],
)
def test_wrong_requests_are_answered_with_what_is_allowed(settings, words):
    with pytest.raises(visiondrop.VisionDropError, match=words):
        visiondrop.plan(settings.pop("method", "visiondrop"), **settings)


def test_a_method_is_registered_by_a_decorator():
    from visiondrop.methods.registry import _METHODS, register
    from visiondrop.plans.plan import Plan

    @register("toy")
    def plan(tokens, shape: VisualShape, *, strength=1):
        return Plan("toy", shape)

    try:
        assert "toy" in visiondrop.available()
        assert visiondrop.plan("toy", 64, strength=2).options == {"strength": 2}
    finally:
        del _METHODS["toy"]


def test_command_line_needs_no_model_and_fails_in_one_sentence():
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "visiondrop", *arguments], capture_output=True, text=True)

    good = run("plan", "--method", "visiondrop", "--tokens", "64", "--json")
    assert good.returncode == 0 and json.loads(good.stdout)["tokens_per_layer"][8] == 70
    bad = run("plan", "--tokens", "500")
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1
