"""A budget as a share of the image's tokens, and what is no budget at all."""

import json

import pytest

import visiondrop
from tests.support import models
from visiondrop import FastV, VisionDrop, VisPruner, compose
from visiondrop.__main__ import main
from visiondrop.plans.shape import VisualShape

SHARED = [name for name in visiondrop.available() if name not in ("none", "sparsevlm")]


@pytest.mark.parametrize("method", SHARED)
@pytest.mark.parametrize("share", ["22%", 0.22, " 22 %"])
def test_a_share_is_the_smallest_reachable_count_that_is_no_less(method, share):
    plan = visiondrop.plan(method, share)
    wanted = next(t for t in range(127, 577) if reachable(method, t))  # 0.22 of 576 is 126.72
    assert plan.tokens == wanted and plan.share == pytest.approx(0.22)
    assert plan.counts == visiondrop.plan(method, wanted).counts
    assert f"--tokens 22%, which is {wanted}" in str(plan.ledger())
    assert json.loads(json.dumps(plan.ledger().as_dict()))["share"] == pytest.approx(0.22)


def reachable(method: str, tokens: int) -> bool:
    try:
        visiondrop.plan(method, tokens)
    except visiondrop.VisionDropError:
        return False
    return True


def test_a_share_goes_upwards_over_gaps_and_follows_the_image():
    assert visiondrop.plan("sparsevlm", "10%").tokens == 64  # 58 is in no table
    assert visiondrop.plan("none", "100%").tokens == 576 and visiondrop.plan("fastv", "0.1%").tokens == 36
    assert visiondrop.plan("pool", "5%").tokens == 30 and visiondrop.plan("uniform", "12.5%").tokens == 72
    assert visiondrop.plan("fastv", "50%", patches=729).tokens == 365
    # 288 of 2880 cannot be shared out over five crops to within a token, 289 can.
    part = VisualShape(units=3, nominal_units=5, length=1176, source="anyres")
    assert (
        visiondrop.plan("vispruner", "10%", shape=part).counts == visiondrop.plan("vispruner", 289, shape=part).counts
    )


def test_values_and_compositions_take_shares():
    assert visiondrop.plan(VisionDrop(tokens="22%", merge=False)).tokens == 127
    pair = compose(encoder=VisPruner(), decoder=FastV(), tokens=0.25)
    assert (
        visiondrop.plan(pair).counts
        == visiondrop.plan(compose(encoder=VisPruner(), decoder=FastV(), tokens=144)).counts
    )
    with visiondrop.apply(models.native(8), "visiondrop", "12.5%") as handle:
        assert handle.plan.tokens == 72 and handle.ledger.mean == 72


@pytest.mark.parametrize(
    "tokens", ["abc", "64", "x%", "0%", "101%", "-5%", float("nan"), float("inf"), [64], True, -0.5]
)
def test_what_is_no_budget_is_refused_in_one_sentence(tokens):
    with pytest.raises(visiondrop.VisionDropError, match="tokens=") as error:
        visiondrop.plan("visiondrop", tokens)
    assert "\n" not in str(error.value)


def test_a_share_out_of_reach_says_what_is_reachable():
    with pytest.raises(visiondrop.VisionDropError, match="3 … 384"):
        visiondrop.plan("visiondrop", "90%")


def test_a_share_beside_explicit_amounts_is_refused():
    with pytest.raises(visiondrop.VisionDropError, match="given together"):
        visiondrop.plan("fastv", "22%", keep=30)


@pytest.mark.parametrize("option", [{"keep": True}, {"keep": 30.5}, {"k": "2.5", "keep": 30}])
def test_a_whole_number_is_not_a_switch_or_a_fraction(option):
    with pytest.raises(visiondrop.VisionDropError, match="whole numbers"):
        visiondrop.plan("fastv", options=option)


def test_layers_are_not_cut_to_whole_numbers():
    with pytest.raises(visiondrop.VisionDropError, match="give whole numbers"):
        visiondrop.plan("visiondrop", 64, options={"layers": [8.5, 16, 24]})


def test_the_command_line_takes_shares_and_short_forms_of_a_pair(capsys):
    assert main(["plan", "--tokens", "22%"]) == 0
    assert "--tokens 22%, which is 127" in capsys.readouterr().out
    assert main(["plan", "--method", "vispruner+fastv", "--tokens", "0.25", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 144
    assert main(["plan", "--method", "vispruner+sparsevlm", "--tokens", "64", "--strict-budget"]) == 0
    assert "method vispruner+sparsevlm" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", "--tokens", "many"])
    assert "write 64, 22% or 0.22" in capsys.readouterr().err
