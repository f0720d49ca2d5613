"""`handle.using` and `handle.pause`: another budget for one call, exactly, for the calling thread only."""

import threading

import pytest
import torch

import visiondrop
from tests.support import models
from visiondrop.errors import VisionDropError
from visiondrop.reuse.prefix import continue_prefix, encode_prefix

LAYERS = 8
KINDS = ["native", "hub"]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return getattr(models, request.param)(LAYERS)


def inputs(model, after=22):
    ids, pixels = models.prompt(0, 35, after), models.pixels(0)
    if hasattr(model, "get_vision_tower"):
        return {"input_ids": torch.tensor([ids]), "images": pixels}
    return {"input_ids": torch.tensor([models.to_hub(ids)]), "pixel_values": pixels}


def logits(model):
    with torch.no_grad():
        return model(**inputs(model)).logits[:, -1]


def alone(model, *args, **options):
    with visiondrop.apply(model, *args, **options):
        return logits(model)


def test_a_call_with_another_budget_equals_that_budget_applied(model):
    stock, other, text = logits(model), alone(model, "visiondrop", 32, merge="off"), alone(model, "fastv", 128)
    applied = alone(model, "visiondrop", 64)
    with visiondrop.apply(model, "visiondrop", 64) as handle:
        with handle.using(tokens=32, merge="off") as inner:
            assert inner is handle and handle.plan.tokens == 32
            assert torch.equal(logits(model), other)
            with handle.using("fastv", 128):
                assert torch.equal(logits(model), text)
                with handle.pause():
                    assert torch.equal(logits(model), stock)
                assert torch.equal(logits(model), text)
            assert torch.equal(logits(model), other)
        assert torch.equal(logits(model), applied)
    assert torch.equal(logits(model), stock)


def test_other_threads_keep_what_was_applied(model):
    applied, found = alone(model, "visiondrop", 64), []
    with visiondrop.apply(model, "visiondrop", 64) as handle, handle.using(tokens=32):
        thread = threading.Thread(target=lambda: found.append(logits(model)))
        thread.start()
        thread.join()
        assert torch.equal(found[0], applied) and not torch.equal(logits(model), applied)


def test_errors_leave_what_was_applied(model):
    applied = alone(model, "visiondrop", 64)
    with visiondrop.apply(model, "visiondrop", 64) as handle:
        for wrong in ({"tokens": 700}, {"method": "nothing"}, {"colour": "red"}, {"min_tokens": 9, "tokens": 64}):
            with pytest.raises(VisionDropError), handle.using(**wrong):
                pass
        with pytest.raises(ZeroDivisionError), handle.using(tokens=32):
            raise ZeroDivisionError
        assert torch.equal(logits(model), applied)
    with pytest.raises(VisionDropError, match="removed"), handle.using(tokens=32):
        pass


def test_a_prefix_belongs_to_the_budget_it_was_made_with(model):
    given = inputs(model, after=0)
    with visiondrop.apply(model, "visiondrop", 64) as handle:
        with handle.using(tokens=32):
            prefix = encode_prefix(model, **given)
            expected = continue_prefix(model, prefix, [[7, 8]], max_new_tokens=3, do_sample=False)
        with pytest.raises(VisionDropError, match="encode it again"):
            continue_prefix(model, prefix, [[7, 8]], max_new_tokens=3)
        with handle.using(tokens=32):  # asked for again: the same choice
            again = continue_prefix(model, prefix, [[7, 8]], max_new_tokens=3, do_sample=False)
        assert torch.equal(again, expected)


def test_min_tokens_guards_a_share():
    from visiondrop.methods.registry import make_plan
    from visiondrop.plans.shape import VisualShape

    small, large = VisualShape(layers=32, patches=20), VisualShape(layers=32, patches=576)
    plan = make_plan("visionzip", "10%", small, {}, min_tokens=16)
    assert plan.tokens == 16 and plan.ledger().mean == 16
    assert make_plan("visionzip", "10%", VisualShape(layers=32, patches=9), {}, min_tokens=16).tokens == 9
    assert make_plan("visionzip", "10%", large, {}, min_tokens=16).tokens == 58


def test_presets_are_published_shares():
    from visiondrop.methods.registry import make_plan
    from visiondrop.plans.presets import PRESETS
    from visiondrop.plans.shape import VisualShape

    shape = VisualShape(layers=28, patches=1024, cls=False, grid=(1, 32, 32))
    assert make_plan("visionzip", "qwen2.5-vl-25", shape, {}).tokens == 256
    fastv = make_plan("fastv", "qwen2.5-vl-25", shape, {})
    assert fastv.stages[0].layer == 2 and fastv.stages[0].keep == 256
    assert all(0 < preset.share(method) < 1 for preset in PRESETS.values() for method in preset.methods)
    with pytest.raises(VisionDropError, match="not published for method 'pool'"):
        make_plan("pool", "qwen2.5-vl-25", shape, {})
    with pytest.raises(VisionDropError, match="qwen2.5-vl-10"):
        make_plan("visionzip", "qwen2.5-vl-11", shape, {})
