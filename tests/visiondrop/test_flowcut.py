"""FlowCut: cuts inside the tower, alike in every batch; how many; FLOPs of a shortened tower; what is refused."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

import visiondrop
from tests.support import models, video_models
from visiondrop.methods.encoder import flowcut
from visiondrop.plans import flops
from visiondrop.plans.plan import EncoderStage, Kept, Plan, TowerStage
from visiondrop.plans.shape import VisualShape
from visiondrop.tower.encoder import embed, run_layers


def expected(share: list[float], target: int, ahead: int) -> int:
    """The official count by its definition, one unit."""
    entropy = -sum(p * math.log(p) for p in share if p) / math.log(len(share))
    return max(len(share) - round((len(share) - target) / math.sqrt(ahead) * (1 - entropy**2)), target)


def test_how_many_are_left():
    draw = torch.Generator().manual_seed(0)
    for ahead in (2, 8, 20):
        weights = torch.rand(1, 90, generator=draw) ** 6
        share = (weights / weights.sum()).double()[0].tolist()
        assert flowcut.left(weights, 10, ahead) == expected(share, 10, ahead) < 90
    assert flowcut.left(torch.rand(1, 90), 10, 0) == 10
    assert flowcut.left(torch.rand(1, 9), 10, 4) == 9


def test_units_of_a_picture_are_cut_alike_by_the_most_uneven_one():
    even, uneven = torch.ones(1, 50), torch.rand(1, 50, generator=torch.Generator().manual_seed(1)) ** 9
    wanted = flowcut.left(uneven, 5, 4)
    assert flowcut.left(torch.cat([even, uneven]), 5, 4) == wanted < flowcut.left(even, 5, 4) == 50


def test_a_weight_that_underflows_is_no_nan():
    one = torch.zeros(1, 40)
    one[0, 7] = 1
    assert flowcut.left(one, 4, 1) == 4  # entropy 0: all but the target go
    assert flowcut.left(torch.zeros(1, 40), 4, 1) == 4  # [CLS] looks at itself alone


@pytest.fixture(scope="module")
def sharp():
    return models.native(2, tower="sharp")


def kept(handle, image: int) -> list[list[int]]:
    return [cut.kept(image).tolist() for cut in handle.report.tower] + [handle.report.stages[0].kept(image).tolist()]


def test_a_picture_is_cut_as_it_would_be_alone(sharp):
    """Their counts differ, so a count of the batch would be seen."""
    ids = torch.tensor([models.prompt()])
    with visiondrop.apply(sharp, "flowcut", tokens=64, report=True) as handle:
        sharp(input_ids=ids.expand(3, -1), images=models.pixels(0, 1, 2))
        together = [kept(handle, image) for image in range(3)]
        lengths = {tuple(map(len, one)) for one in together}
        for image in range(3):
            sharp(input_ids=ids, images=models.pixels(image))
            assert kept(handle, 0) == together[image]
    assert len(lengths) == 3


def test_transformers_class_cuts_alike(sharp):
    hub, ids, out = models.hub(2, tower="sharp"), models.prompt(), []
    with visiondrop.apply(sharp, "flowcut", tokens=64, report=True) as handle:
        wanted = sharp(input_ids=torch.tensor([ids]), images=models.pixels(0)).logits[0, -1]
        out.append(kept(handle, 0))
    with visiondrop.apply(hub, "flowcut", tokens=64, report=True) as handle:
        got = hub(input_ids=torch.tensor([models.to_hub(ids)]), pixel_values=models.pixels(0)).logits[0, -1, :512]
        out.append(kept(handle, 0))
    assert out[0] == out[1] and (got - wanted).abs().max() <= 1e-5


def test_the_plan_counts_back_from_the_feature_layer():
    plan = visiondrop.plan("flowcut", 64)
    assert [s.layer for s in plan.tower] == list(range(1, 22, 2)) and [s.keep for s in plan.tower] == [577] * 10 + [65]
    assert plan.tower[0].probes == (0, 1) and plan.tower[1].probes == (2, 3)
    odd = visiondrop.plan("flowcut", 64, shape=VisualShape(feature_layer=23)).tower  # the last layer's output
    assert [s.layer for s in odd] == list(range(0, 23, 2)) and odd[0].probes == (0,) and odd[1].probes == (1, 2)
    assert not visiondrop.plan("flowcut", 576).active
    text = str(plan.ledger())
    assert "tower layers  0 – 21   577 rows at most" in text and "tower layers 22 – 23    65 rows" in text
    assert "depends on the picture" in text and plan.ledger().as_dict()["tower"][-1] == [21, 65]


@pytest.mark.parametrize("lean", [False, True])
def test_flops_of_a_shortened_tower_equal_the_counter(lean):
    rows, depth = {0: 300, 2: 120, 4: 40}, 7 - int(lean)
    stages = tuple(TowerStage(layer, Kept(n), lambda view, kept: None) for layer, n in rows.items())
    shape = VisualShape(tower_layers=7, feature_layer=5)
    plan = Plan("mine", shape, encoder=EncoderStage(Kept(39), lambda view, kept: None), tower=stages)
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=depth,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        tower = CLIPVisionModel(config)
        tower = getattr(tower, "vision_model", tower)
        hidden, at = embed(tower, torch.empty(1, 3, 336, 336)), 0
        for layer, n in [*rows.items(), (depth - 1, 0)]:
            hidden, at = run_layers(tower, hidden, at, layer)[:, :n], layer + 1
    assert plan.tower_rows(7) == [577, 300, 300, 120, 120, 40, 40]
    assert flops.tower(flops.LLAVA_7B, 576, depth, 1, plan.tower_rows(depth)) == counter.get_total_flops()
    whole = Plan("mine", shape, encoder=plan.encoder)
    dims = flops.ModelDims(vision_layers=7)
    saved = flops.tower(dims, 576, depth, 1) - counter.get_total_flops()
    assert flops.prefill(whole, dims, 63, lean) - flops.prefill(plan, dims, 63, lean) == pytest.approx(saved)


@pytest.mark.parametrize(
    "tower, words",
    [
        ((TowerStage(22, Kept(9), None),), "0 … 21"),
        ((TowerStage(3, Kept(9), None), TowerStage(1, Kept(9), None)), "ascending"),
        ((TowerStage(1, Kept(9), None), TowerStage(3, Kept(10), None)), "more rows than it receives"),
        ((TowerStage(1, Kept(9), None, adaptive=True),), "fixed number"),
    ],
)
def test_wrong_stages_inside_the_tower(tower, words):
    with pytest.raises(visiondrop.VisionDropError, match=words):
        Plan("mine", VisualShape(), encoder=EncoderStage(Kept(8), None), tower=tower)


def test_towers_that_cannot_be_cut():
    with pytest.raises(visiondrop.VisionDropError, match="no \\[CLS\\]"):
        visiondrop.plan("flowcut", 64, shape=VisualShape(cls=False))
    with pytest.raises(visiondrop.VisionDropError, match="attends over time"):
        visiondrop.apply(video_models.native(2), "flowcut", tokens=64)


def test_frames_without_temporal_attention_are_cut_like_crops():
    model = video_models.native(2, temporal=False)
    ids = [3, 4, *[-200] * 8, 5, 6]
    with visiondrop.apply(model, "flowcut", tokens=64, report=True) as handle:
        model(input_ids=torch.tensor([ids]), images=[video_models.video(0)])
        assert len(handle.report.stages[0].kept()) == 64
        patches = handle.report.tower[-1].kept()
    patches = patches[patches >= 0]
    assert (patches // video_models.PATCHES).bincount(minlength=8).tolist() == [8] * 8


def test_static_shapes_are_refused_with_the_reason(caplog):
    model = models.native(2, tower="deep")
    options = dict(images=models.pixels(0), max_new_tokens=2, do_sample=False)
    ids = torch.tensor([models.prompt()])
    with visiondrop.apply(model, "flowcut", tokens=64):
        wanted = model.generate(ids, **options)
    with visiondrop.apply(model, "flowcut", tokens=64, compile=True), caplog.at_level("WARNING"):
        assert torch.equal(model.generate(ids, **options), wanted)
    assert "the tower's lengths depend on the picture" in caplog.text
