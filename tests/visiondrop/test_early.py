"""Cuts inside the tower for methods that rank by [CLS]: equal to a tower run by hand, alike in every front end and batch."""

import pytest
import torch

import visiondrop
from tests.support import models, video_models
from visiondrop import VisionDrop
from visiondrop.plans import flops
from visiondrop.plans.shape import VisualShape

CUT = {"tower_stages": "0:300,1:200"}
METHODS = ["visionzip", "vispruner", "scope", "visiondrop"]


@pytest.fixture(scope="module")
def model():
    return models.native(4)


def run(model, image, method, tokens=64, **options):
    ids = torch.tensor([models.prompt()])
    with visiondrop.apply(model, method, tokens=tokens, report=True, **options) as handle:
        logits = model(input_ids=ids.expand(len(image), -1), images=image).logits[:, -1]
        return logits, [handle.report.stages[0].kept(i).tolist() for i in range(len(image))], handle.report.tower


def by_hand(tower, pixels):
    """The rows left at the feature layer, and how [CLS] looks at them there, from attention maps in full."""
    hidden, left = tower.pre_layrnorm(tower.embeddings(pixels)), torch.arange(577)
    for i, layer in enumerate(tower.encoder.layers[:3]):
        attention, states = layer.self_attn, layer.layer_norm1(hidden)
        q, k = (
            p(states).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj)
        )
        looks = (q @ k.transpose(2, 3) * attention.scale).softmax(-1).mean(1)[0, 0]
        hidden = layer(hidden, None)
        if i < 2:
            best = looks[1:].argsort(descending=True)[: (300, 200)[i]].sort().values + 1
            index = torch.cat([torch.zeros(1, dtype=torch.long), best])
            hidden, left = hidden[:, index], left[index]
    return left, looks


def test_what_is_kept_equals_a_tower_run_by_hand(model):
    tower = model.get_vision_tower().vision_tower
    left, looks = by_hand(getattr(tower, "vision_model", tower), models.pixels(0))
    best = left[1:][looks[1:].argsort(descending=True)[:53]]
    _, (got,), cuts = run(model, models.pixels(0), "visionzip", None, dominant=54, contextual=0, **CUT)
    assert [len(cut.kept(0)) for cut in cuts] == [301, 201]
    assert cuts[1].kept(0).tolist() == (left - 1).tolist()  # [CLS] has the id -1
    assert got == [-1, *(best.sort().values - 1).tolist()]


@pytest.mark.parametrize("method", METHODS)
def test_a_cut_that_keeps_everything_changes_nothing(model, method):
    plain, kept, _ = run(model, models.pixels(0), method)
    same, kept_too, _ = run(model, models.pixels(0), method, tower_stages="1:576")
    assert torch.equal(plain, same) and kept == kept_too


@pytest.mark.parametrize("method", METHODS)
def test_batch_equals_singles_and_hub_equals_native(model, method):
    together, kept, _ = run(model, models.pixels(0, 1), method, **CUT)
    for i in range(2):
        alone, (own,), _ = run(model, models.pixels(i), method, **CUT)
        assert own == kept[i] and (alone[0] - together[i]).abs().max() <= 2e-5
    hub = models.hub(4)
    with visiondrop.apply(hub, method, tokens=64, report=True, **CUT) as handle:
        ids = torch.tensor([models.to_hub(models.prompt())])
        got = hub(input_ids=ids, pixel_values=models.pixels(1)).logits[0, -1, : models.HUB_IMAGE_ID]
        assert handle.report.stages[0].kept(0).tolist() == kept[1] and (got - together[1]).abs().max() <= 2e-5


def test_the_ledger_counts_it():
    plain, cut = (visiondrop.plan("visiondrop", 64, **o).ledger() for o in ({}, {"tower_stages": "8:192"}))
    rows = [577] * 9 + [193] * 15
    saved = flops.tower(flops.LLAVA_7B, 576, 24, 1) - flops.tower(flops.LLAVA_7B, 576, 24, 1, rows)
    assert plain.flops - cut.flops == saved > 0.2 * flops.tower(flops.LLAVA_7B, 576, 24, 1)
    assert "tower layers  9 – 23   193 rows" in str(cut) and cut.as_dict()["tower"] == [[8, 193]]
    assert cut.tokens_per_layer == plain.tokens_per_layer and "tower" not in plain.as_dict()


def test_the_option_reads_and_spells():
    value = VisionDrop(tokens=64, tower_stages="8:384,14:192")
    assert value == VisionDrop(tokens=64, tower_stages=[[8, 384], [14, 192]])
    assert value.options() == {"tower_stages": "8:384,14:192"} and not VisionDrop(tokens=64).options()
    joined = visiondrop.plan("vispruner+fastv", 64, options={"encoder.tower_stages": "8:384"})
    assert [s.layer for s in joined.tower] == [8] and joined.stages


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tower_stages": "22:288"}, "0 … 21"),
        ({"tower_stages": "8:288,4:200"}, "ascending"),
        ({"tower_stages": "4:200,8:288"}, "falling numbers of patches from 576 to 95"),
        ({"tower_stages": "8:94"}, "from 576 to 95"),
        ({"tower_stages": "8"}, "tower_stages=12:288"),
        ({"tower_stages": "8:288", "encoder": "off"}, "has none"),
    ],
)
def test_wrong_cuts_are_told(options, words):
    with pytest.raises(visiondrop.VisionDropError, match=words):
        visiondrop.plan("visiondrop", 64, options=options)


def test_a_tower_that_attends_over_time_is_not_cut():
    with pytest.raises(visiondrop.VisionDropError, match="attends over time"):
        visiondrop.apply(video_models.native(2), "visionzip", tokens=64, **CUT)


def test_crops_are_cut_one_by_one():
    shape = VisualShape(units=5, nominal_units=5, source="anyres", length=2928, canvas=(48, 48))
    plan = visiondrop.plan("visionzip", 320, shape=shape, tower_stages="8:192")
    assert plan.tower_rows(10)[-1] == 193 and plan.encoder.keep == 64
