"""Pruned LLaVA-NeXT against simpler computations: a dense reference, the other layout, singles, one pass."""

import pytest
import torch

import visiondrop
from llava import anyres
from tests.support import dense_reference, models, next_models
from visiondrop.errors import VisionDropError

LAYERS = 8  # stages at 2, 4 and 6
BUDGET = 80  # of 5 x 64: 24 a crop after the encoder
SQUARE, WIDE, TALL, TINY = (640, 480), (1200, 300), (300, 1000), (50, 50)  # 5, 4, 4 and 3 crops


@pytest.fixture(scope="module")
def native():
    return next_models.native(LAYERS)


@pytest.fixture(scope="module")
def hub():
    return next_models.hub(LAYERS)


def logits(model, rows, images, sizes, **more):
    ids, mask = models.pad(rows)
    return model(input_ids=ids, attention_mask=mask, images=images, image_sizes=sizes, **more).logits[:, -1]


@pytest.mark.parametrize("size, units", [(SQUARE, 5), (WIDE, 4), (TALL, 4), (TINY, 3)])
def test_visiondrop_equals_a_dense_reference_for_any_number_of_crops(native, size, units):
    images, sizes = next_models.inputs(native, size)
    row = models.prompt()
    at = row.index(-200)
    with visiondrop.apply(native, tokens=BUDGET, report=True) as handle:
        found = logits(native, [row], images, sizes)[0]
        per_layer = handle.report.tokens_per_layer[0]
    # n_0 = crops x 24; then times 0.73362, rounded; the last takes what makes the mean BUDGET x crops / 5.
    n0, mean = 24 * units, BUDGET * units / 5
    counts = [n0, round(n0 * 0.73362), round(n0 * 0.73362**2)]
    counts.append(round(4 * mean - sum(counts)))
    assert per_layer == [n for n in counts for _ in range(2)]
    split = [(7 * n // 8, n - 7 * n // 8) for n in counts[1:]]
    crops = native.pictures(images, sizes)[0]
    reduced = dense_reference.encoder_stage(native.get_vision_tower().clip, crops.pixels, 3, 21, 3)
    visual = native.model.mm_projector(dense_reference.canvas_order(reduced, crops.grid, 8))
    expected = dense_reference.decode(native, row[:at], visual, row[at + 1 :], dict(zip((2, 4, 6), split)))
    assert (found - expected).abs().max() <= 1e-5


METHODS = {
    "visiondrop": {"tokens": BUDGET},
    "visionzip": {},
    "vispruner": {},
    "fastv": {},
    "pyramiddrop": {},
    "random": {},
    "uniform": {},
    "pool": {},
    "none": {"tokens": None},
}


@pytest.mark.parametrize("method", METHODS)
def test_both_layouts_agree(native, hub, method):
    settings = {"method": method, "tokens": 160, **METHODS[method]}
    images, sizes = next_models.inputs(native, SQUARE, TINY)
    rows = [models.prompt(), models.prompt(1, 9, 40)]
    with visiondrop.apply(native, **settings):
        found = logits(native, rows, images, sizes)
    inputs = next_models.to_hub(native, images, sizes, rows)
    with visiondrop.apply(hub, **settings):
        expected = hub(**inputs).logits[:, -1, :512]
        tokens = hub.generate(**inputs, do_sample=False, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    assert (found - expected).abs().max() <= 1e-5
    with visiondrop.apply(native, **settings):
        ids, mask = models.pad(rows)
        own = native.generate(
            ids, attention_mask=mask, images=images, image_sizes=sizes, do_sample=False, max_new_tokens=4
        )
    assert own.tolist() == tokens.tolist()


@pytest.mark.parametrize(
    "settings", [{"tokens": BUDGET}, {"method": "fastv", "tokens": 160}, {"method": "random", "tokens": 160}]
)
def test_a_batch_of_unequal_crops_equals_singles(native, settings):
    images, sizes = next_models.inputs(native, SQUARE, WIDE, TINY)
    rows = [models.prompt(), models.prompt(1, 9, 40), models.prompt(2, 20, 3)]
    with visiondrop.apply(native, **settings):
        together = logits(native, rows, images, sizes)
        for i, row in enumerate(rows):
            alone = logits(native, [row], images[i : i + 1], sizes[i : i + 1])
            assert (together[i] - alone[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("settings", [{"tokens": BUDGET}, {"method": "fastv", "tokens": 160}])
def test_cached_decoding_equals_one_pass_with_two_images(native, settings):
    images, sizes = next_models.inputs(native, WIDE, SQUARE)
    row = models.prompt(3, 6, 4) + models.prompt(4, 12, 9)
    with visiondrop.apply(native, report=True, **settings) as handle:
        new = native.generate(
            torch.tensor([row]),
            images=images,
            image_sizes=sizes,
            do_sample=False,
            max_new_tokens=5,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert len(handle.report.tokens_per_layer) == 2
        steps = torch.cat(new.logits)
        for step in range(1, 5):
            longer = row + new.sequences[0, :step].tolist()
            again = logits(native, [longer], images, sizes)
            assert (again[0] - steps[step]).abs().max() <= 1e-5


def test_ids_name_patches_newlines_and_crops(native):
    images, sizes = next_models.inputs(native, WIDE)
    row = models.prompt()
    with visiondrop.apply(native, method="uniform", tokens=160, report=True) as handle:
        logits(native, [row], images, sizes)
        stage = handle.report.stages[-1]
    packed = native.pictures(images, sizes)[0].ids
    assert torch.equal(stage.origin[0], packed)
    assert set(stage.kept().tolist()) <= set(packed.tolist())
    newlines = packed[packed < -4]  # below the four [CLS] ids
    assert len(newlines) == len(set(newlines.tolist())) > 0


def test_budgets_follow_the_image_and_the_ledger_says_so():
    shape = anyres.describe_crops(next_models.native(32, side=336).config, None, WIDE).shape
    assert (shape.units, shape.tokens) == (4, 576 + 18 * 73)
    for tokens, keep in ((640, 192), (320, 96), (160, 48)):
        plan = visiondrop.plan("visiondrop", tokens, shape=shape)
        assert plan.encoder.keep == keep and plan.ledger().mean == pytest.approx(tokens * 4 / 5)
        plan = visiondrop.plan("visionzip", tokens, shape=shape)
        assert plan.encoder.keep == tokens // 5 and plan.ledger().mean == tokens * 4 / 5
        assert "4 crops" in str(plan.ledger())
    plan = visiondrop.plan("fastv", 640, shape=shape)
    assert plan.ledger().mean == pytest.approx(640 / 2880 * shape.tokens, abs=0.5)
    assert f"{shape.tokens} of 2880" in str(plan.ledger()) and plan.ledger().as_dict()["layout"] == "anyres"


def test_budgets_of_the_paper_for_five_crops():
    model = next_models.native(32, side=336)
    anyres.use_layout(model, "fixed-2880")
    shape = anyres.describe_crops(model.config, 5, None).shape
    expected = {160: (240, 176, 129, 95), 320: (480, 352, 258, 190), 640: (960, 704, 517, 379)}
    for tokens, counts in expected.items():
        plan = visiondrop.plan("visiondrop", tokens, shape=shape)
        assert tuple(plan.counts) == counts and plan.ledger().mean == tokens and not plan.notes
    assert visiondrop.plan("fastv", 640, shape=shape).counts[-1] == 491
    assert visiondrop.plan("fastv", 320, shape=shape).counts[-1] == 149
    assert visiondrop.plan("pyramiddrop", 640, shape=shape).counts == [2880, 1208, 507, 212]
    assert visiondrop.plan("vispruner", 160, shape=shape).encoder.keep == 32


@pytest.mark.parametrize("tokens", [160, 165, 320, 640])
@pytest.mark.parametrize(
    "method", ["visiondrop", "visionzip", "vispruner", "fastv", "pyramiddrop", "random", "uniform"]
)
def test_a_budget_of_an_ordinary_image_is_met_by_every_image(method, tokens):
    config = next_models.native(32, side=336).config
    if method in ("fastv", "pyramiddrop") and tokens < 180:  # two full layers of 32 cost that much
        with pytest.raises(VisionDropError, match="not reachable"):
            visiondrop.plan(method, tokens, shape=anyres.describe_crops(config, 5, (672, 672)).shape)
        return
    for size in (SQUARE, WIDE, TALL, TINY, (2000, 9), (9, 2000), (1008, 20)):
        visiondrop.plan(method, tokens, shape=anyres.describe_crops(config, None, size).shape)


def test_sparsevlm_is_refused_without_amounts(native):
    with pytest.raises(VisionDropError, match="published"):
        visiondrop.apply(native, method="sparsevlm", tokens=160)
    with visiondrop.apply(native, method="sparsevlm", keep="100,60,20"):
        images, sizes = next_models.inputs(native, SQUARE)
        assert logits(native, [models.prompt()], images, sizes).isfinite().all()


def test_a_thin_strip_makes_room_for_what_the_encoder_keeps(native, hub):
    images, sizes = next_models.inputs(native, (2000, 9))
    assert native.pictures(images, sizes)[0].shape.tokens < 4 * 38
    row = models.prompt()
    with visiondrop.apply(native, tokens=128, report=True) as handle:
        assert logits(native, [row], images, sizes).isfinite().all()
        assert handle.report.tokens_per_layer[0][0] == 4 * 38
        new = native.generate(torch.tensor([row]), images=images, image_sizes=sizes, do_sample=False, max_new_tokens=3)
        again = logits(native, [row + new[0, :2].tolist()], images, sizes)
    assert again.argmax() == new[0, 2]
    inputs = next_models.to_hub(native, images, sizes, [row])
    with visiondrop.apply(hub, tokens=128), pytest.raises(VisionDropError, match="smaller budget"):
        hub(**inputs)


def test_beams_and_no_cache(native):
    images, sizes = next_models.inputs(native, WIDE)
    settings = dict(images=images, image_sizes=sizes, do_sample=False, max_new_tokens=3, num_beams=3)
    with visiondrop.apply(native, tokens=BUDGET):
        ids = torch.tensor([models.prompt()])
        assert native.generate(ids, **settings).tolist() == native.generate(ids, **settings, use_cache=False).tolist()


def test_a_second_turn_needs_sizes_but_no_pixels(native):
    images, sizes = next_models.inputs(native, SQUARE)
    row = models.prompt()
    ids = torch.tensor([row])
    with visiondrop.apply(native, tokens=BUDGET):
        first = native.generate(
            ids, images=images, image_sizes=sizes, do_sample=False, max_new_tokens=3, return_dict_in_generate=True
        )
        longer = torch.tensor([row + first.sequences[0].tolist() + [7, 8, 9]])
        cache = first.past_key_values
        again = native.generate(longer, image_sizes=sizes, past_key_values=cache, do_sample=False, max_new_tokens=3)
        fresh = native.generate(longer, images=images, image_sizes=sizes, do_sample=False, max_new_tokens=3)
        assert again.tolist() == fresh.tolist()
        with pytest.raises(VisionDropError, match="image_sizes"):
            native.generate(longer, past_key_values=cache, do_sample=False, max_new_tokens=3)
