"""Unpadded LLaVA-NeXT pictures under VScan and FlowCut: what lies in padding goes, so every picture has a length of its own."""

import pytest
import torch

import visiondrop
from llava import anyres
from tests.support import models, next_models
from visiondrop.tower.units import pack

METHODS = {"vscan": dict(keep="32,60"), "flowcut": dict(tokens=60)}
SIZES = (160, 100), (100, 160), (120, 110), (300, 60)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def native():
    return next_models.native()


@pytest.fixture(params=METHODS)
def pruned(request, native):
    with visiondrop.apply(native, request.param, report=True, **METHODS[request.param]) as handle:
        yield native, handle


def kept_of(handle, image: int) -> list[list[int]]:
    """What each stage kept of a picture; none for a cut that was not made, as no more tokens had come."""
    sequences = [stage.sequence[image] for stage in handle.report.stages]
    return [ids.tolist() for ids in sequences if ids is not None]


def test_pack():
    """Crop 0 is the base picture of four patches; the canvas has lost its last row."""
    whole = torch.tensor([0, 1, 2, 3, 4, 5, 8, 9, -7])
    kept = torch.tensor([1, 2, 4, 6, 9, 11])  # 6 and 11 lie in the padding
    order, ids = pack(kept, whole, 12, newlines=True)
    assert order.tolist() == [0, 1, 2, 4, 6] and ids.tolist() == [1, 2, 4, 9, -7]
    order, ids = pack(kept, whole, 12, newlines=False)
    assert order.tolist() == [0, 1, 2, 4] and ids.tolist() == [1, 2, 4, 9]


def test_a_batch_equals_its_singles_though_lengths_differ(pruned):
    model, handle = pruned
    images, sizes = next_models.inputs(model, *SIZES)
    prompts = [models.prompt(seed, 20, after) for seed, after in enumerate((9, 4, 7, 5))]
    ids, mask = models.pad(prompts)
    options = dict(do_sample=False, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
    batch = model.generate(ids, attention_mask=mask, images=images, image_sizes=sizes, **options)
    kept = [kept_of(handle, i) for i in range(4)]
    lengths = [list(row) for row in handle.report.cache_lengths]
    assert len({len(stages[0]) for stages in kept}) >= 2  # pictures of one shape among them
    for i, prompt in enumerate(prompts):
        one = model.generate(torch.tensor([prompt]), images=[images[i]], image_sizes=[sizes[i]], **options)
        assert kept_of(handle, 0) == kept[i]
        assert handle.report.cache_lengths[0] == lengths[i] and one.sequences[0].tolist() == batch.sequences[i].tolist()
        assert max((a[0] - b[i]).abs().max() for a, b in zip(one.logits, batch.logits)) <= TOLERANCE


def test_cached_equals_uncached_with_beams_and_a_second_turn(pruned):
    model, handle = pruned
    images, sizes = next_models.inputs(model, (160, 100), (130, 110))
    ids, mask = models.pad([models.prompt(0, 20, 9), models.prompt(1, 20, 4)])
    given = dict(images=images, image_sizes=sizes, do_sample=False)
    beams = [
        model.generate(ids, attention_mask=mask, num_beams=2, max_new_tokens=3, use_cache=use, **given)
        for use in (True, False)
    ]
    assert torch.equal(*beams)
    handle.reset()
    more = dict(output_logits=True, return_dict_in_generate=True, max_new_tokens=3)
    first = model.generate(ids, attention_mask=mask, **given, **more)
    text = torch.tensor([[t for t in models.prompt(7, 6, 0) if t >= 0]] * 2)
    ids, mask = (
        torch.cat([ids, first.sequences, text], 1),
        torch.cat([mask, torch.ones_like(first.sequences), text * 0 + 1], 1),
    )
    kept = model.generate(ids, attention_mask=mask, past_key_values=first.past_key_values, **given, **more)
    scratch = model.generate(ids, attention_mask=mask, **given, **more)
    assert torch.equal(kept.sequences, scratch.sequences)
    assert max((a - b).abs().max() for a, b in zip(kept.logits, scratch.logits)) <= TOLERANCE


def test_transformers_class_packs_alike(pruned):
    model, handle = pruned
    images, sizes = next_models.inputs(model, (160, 100), (100, 160), (130, 110))
    prompts = [models.prompt(seed, 20, after) for seed, after in enumerate((9, 4, 7))]
    ids, mask = models.pad(prompts)
    wanted = model(input_ids=ids, attention_mask=mask, images=images, image_sizes=sizes).logits[:, -1]
    kept = [kept_of(handle, i) for i in range(3)]
    hub, name = next_models.hub(), handle.plan.method
    with visiondrop.apply(hub, name, report=True, **METHODS[name]) as other:
        got = hub(**next_models.to_hub(model, images, sizes, prompts)).logits[:, -1, :512]
        assert [kept_of(other, i) for i in range(3)] == kept
    assert (got - wanted).abs().max() <= TOLERANCE


def test_what_the_plans_say(native):
    square = native.visual_shape()
    assert square.newlines == 16 and anyres.is_anyres(native.config)
    plan = visiondrop.plan("vscan", keep="32,60", shape=square)
    assert plan.counts == [5 * 32 + 16, 60] and plan.packed and "depends on the picture" in str(plan.ledger())
    plan = visiondrop.plan("flowcut", 60, shape=square)
    assert plan.counts == [150, 60] and plan.text_guided and "30 of every crop" in str(plan.ledger())
    assert plan.arriving(40).tokens_per_layer() == [40] * 8  # fewer than the cut would keep: it keeps them all


def test_other_layouts_lose_nothing(native):
    fixed = next_models.native(image_aspect_ratio="anyres", mm_patch_merge_type="spatial")
    anyres.use_layout(fixed, "fixed-2880")
    images, sizes = next_models.inputs(fixed, (160, 100))
    for name, settings in METHODS.items():
        with visiondrop.apply(fixed, name, report=True, **settings) as handle:
            fixed(input_ids=torch.tensor([models.prompt()]), images=images, image_sizes=sizes)
            assert handle.report.tokens_per_layer[0] == handle.plan.tokens_per_layer() and not handle.plan.packed
