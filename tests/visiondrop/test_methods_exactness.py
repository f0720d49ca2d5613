"""Every baseline and control against simpler computations: steps against one pass, batches against singles."""

import pytest
import torch

import visiondrop
from tests.support import clip, models

LAYERS = 8  # FastV prunes at 1, PyramidDrop and SparseVLM at 1, 2 and 4
TOLERANCE = 1e-5
CLIP = (clip.model(), clip.tokenizer)
READS = {"tokenizer": clip.Prompts()}  # methods that read the question find it after the picture
SETTINGS = {
    "fastv": dict(tokens=100),
    "pyramiddrop": dict(tokens=100),
    "pyramiddrop-visual": dict(tokens=100, score="visual"),
    "sparsevlm": dict(tokens=64),
    "visionzip": dict(tokens=64),
    "vispruner": dict(tokens=64),
    "divprune": dict(tokens=64),
    "scope": dict(tokens=64),
    "prumerge": dict(tokens=64),
    "dart": dict(tokens=100),
    "prunesid": dict(tokens=64),
    "holov": dict(tokens=64),
    "hiprune": dict(tokens=64),
    "flowcut": dict(tokens=64),
    "cdpruner": dict(tokens=64, clip=CLIP),
    "vscan": dict(tokens=64),
    "random": dict(tokens=64),
    "uniform": dict(tokens=64),
    "pool": dict(tokens=64),
    # the other positions than a method's own
    "fastv-compact": dict(tokens=100, positions="compact"),
    "dart-compact": dict(tokens=100, positions="compact"),
    "pyramiddrop-original": dict(tokens=100, positions="original"),
    "sparsevlm-original": dict(tokens=64, positions="original"),
    "visiondrop-original": dict(tokens=64, positions="original"),
    "vscan-original": dict(tokens=64, positions="original"),
    "divprune-original": dict(tokens=64, positions="original"),
    "random-original": dict(tokens=64, positions="original"),
    "uniform-original": dict(tokens=64, positions="original"),
    "pool-original": dict(tokens=64, positions="original"),
}
TEXT_GUIDED = ("dart", "cdpruner", "fastv", "pyramiddrop", "sparsevlm", "vscan")


@pytest.fixture(scope="module")
def native():
    return models.native(LAYERS)


@pytest.fixture(params=SETTINGS)
def pruned(request, native):
    with visiondrop.apply(
        native, method=request.param.split("-")[0], report=True, **SETTINGS[request.param], **READS
    ) as handle:
        yield native, handle


def options_of(handle) -> dict:
    """Its options, with the model that no ledger holds."""
    return {**handle.plan.options, **({"clip": CLIP} if handle.plan.method == "cdpruner" else {})}


def text_prompt(length: int = 30) -> list[int]:
    return [t for t in models.prompt(9, length, 0) if t >= 0]


def logits(model, ids: list[int], pictures):
    return model(input_ids=torch.tensor([ids]), images=pictures).logits[:, -1]


def test_the_table_covers_every_method():
    assert {name.split("-")[0] for name in SETTINGS} | {"none", "visiondrop"} <= set(visiondrop.available())


def test_cached_decoding_equals_one_pass_and_uncached(pruned):
    model, handle = pruned
    handle.reset()
    ids, pictures = models.prompt(), models.pixels(0)
    options = dict(images=pictures, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    cached = model.generate(torch.tensor([ids]), **options)
    kept = handle.report.stages[-1].kept().tolist()
    uncached = model.generate(torch.tensor([ids]), use_cache=False, **options)
    assert handle.report.stages[-1].kept().tolist() == kept
    assert torch.equal(cached.sequences, uncached.sequences)
    new = cached.sequences[0].tolist()
    for step, (with_cache, without) in enumerate(zip(cached.logits, uncached.logits)):
        assert (with_cache - without).abs().max() <= TOLERANCE
        assert (with_cache - logits(model, ids + new[:step], pictures)).abs().max() <= TOLERANCE


def test_batch_of_unequal_prompts_equals_singles(pruned):
    """Among them a prompt with two images, one without any, and one that ends with its image."""
    model, handle = pruned
    two_images = models.prompt(2, 12, 4) + models.prompt(3, 20, 7)[1:]
    prompts = [models.prompt(0), two_images, text_prompt(), models.prompt(1, 35, 9), models.prompt(4, 11, 0)]
    pictures = [models.pixels(0), models.pixels(1, 2), None, models.pixels(3), models.pixels(4)]
    ids, mask = models.pad(prompts)
    options = dict(do_sample=False, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
    batch = model.generate(ids, attention_mask=mask, images=models.pixels(0, 1, 2, 3, 4), **options)
    kept = [handle.report.stages[-1].kept(i) for i in range(5)]
    lengths = [list(row) for row in handle.report.cache_lengths]
    position = 0
    for row, (prompt, picture) in enumerate(zip(prompts, pictures)):
        single = model.generate(torch.tensor([prompt]), images=picture, **options)
        assert single.sequences[0].tolist() == batch.sequences[row].tolist()
        for a, b in zip(single.logits, batch.logits):
            assert (a[0] - b[row]).abs().max() <= TOLERANCE
        if picture is not None:
            assert handle.report.cache_lengths[0] == lengths[row]
            for image in range(len(picture)):
                assert torch.equal(handle.report.stages[-1].kept(image), kept[position])
                position += 1
    assert position == 5


def test_beams_cached_equal_uncached_on_unequal_prompts_and_either_padding(pruned):
    model, _ = pruned
    answers = []
    for side in ("left", "right"):
        ids, mask = models.pad([models.prompt(), models.prompt(1, 35, 9)], side)
        for use_cache in (True, False):
            answers.append(
                model.generate(
                    ids,
                    attention_mask=mask,
                    images=models.pixels(0, 1),
                    do_sample=False,
                    max_new_tokens=3,
                    num_beams=2,
                    use_cache=use_cache,
                )
            )
    assert all(torch.equal(answers[0], other) for other in answers[1:])


def test_second_turn_on_the_kept_cache_equals_from_scratch(pruned):
    model, _ = pruned
    ids, mask = models.pad([models.prompt(), models.prompt(1, 35, 9)])
    pictures = models.pixels(0, 1)
    options = dict(do_sample=False, return_dict_in_generate=True, output_logits=True)
    first = model.generate(ids, attention_mask=mask, images=pictures, max_new_tokens=3, **options)
    ids = torch.cat([ids, first.sequences, torch.tensor([text_prompt(7), text_prompt(8)[1:]])], dim=1)
    mask = torch.cat([mask, torch.ones(2, 10, dtype=mask.dtype)], dim=1)
    kept = model.generate(
        ids, attention_mask=mask, images=pictures, past_key_values=first.past_key_values, max_new_tokens=3, **options
    )
    scratch = model.generate(ids, attention_mask=mask, images=pictures, max_new_tokens=3, **options)
    assert torch.equal(kept.sequences, scratch.sequences)
    assert max((a - b).abs().max() for a, b in zip(kept.logits, scratch.logits)) <= TOLERANCE


def test_a_new_image_in_a_second_turn_equals_from_scratch(pruned):
    """Except where a layer ranks with itself: its cache then holds the first image as it was after that ranking."""
    model, handle = pruned
    ids, pictures = torch.tensor([models.prompt()]), models.pixels(0, 5)
    options = dict(do_sample=False, return_dict_in_generate=True, output_logits=True)
    first = model.generate(ids, images=pictures[:1], max_new_tokens=3, **options)
    ids = torch.cat([ids, first.sequences, torch.tensor([models.prompt(4, 5, 6)])], dim=1)
    kept = model.generate(ids, images=pictures, past_key_values=first.past_key_values, max_new_tokens=3, **options)
    text = 57 + 3 + 11  # both turns; the last answer token of turn one is fed in turn two
    assert handle.report.cache_lengths[0] == [2 * n + text for n in handle.plan.tokens_per_layer()]
    if any(stage.probe == stage.layer for stage in handle.plan.stages):
        assert handle.plan.method in ("pyramiddrop", "vscan", "visiondrop")
        return
    cached = handle.report.stages[-1].kept(-1)
    scratch = model.generate(ids, images=pictures, max_new_tokens=3, **options)
    assert torch.equal(handle.report.stages[-1].kept(-1), cached)
    assert torch.equal(kept.sequences, scratch.sequences)
    assert max((a - b).abs().max() for a, b in zip(kept.logits, scratch.logits)) <= TOLERANCE


def test_eager_equals_sdpa_and_half_precision_runs(pruned):
    model, handle = pruned
    ids, mask = models.pad([models.prompt(), models.prompt(1, 35, 9)])
    pictures = models.pixels(0, 1)
    method, tokens, options = handle.plan.method, handle.plan.tokens, options_of(handle)
    wanted = model(input_ids=ids, attention_mask=mask, images=pictures).logits[:, -1]
    with visiondrop.apply(models.native(LAYERS, attn="eager"), method, tokens, options=options, **READS) as other:
        got = other.model(input_ids=ids, attention_mask=mask, images=pictures).logits[:, -1]
    assert (got - wanted).abs().max() <= TOLERANCE
    for dtype in (torch.float16, torch.bfloat16):
        half = models.native(LAYERS, dtype)
        with visiondrop.apply(half, method, tokens, options=options, **READS):
            out = half.generate(ids, attention_mask=mask, images=pictures, max_new_tokens=2, do_sample=False)
            assert out.shape == (2, 2)
            near = half(input_ids=ids, attention_mask=mask, images=pictures).logits[:, -1].float()
        assert torch.isfinite(near).all()


def test_transformers_own_class_keeps_the_same_tokens(pruned):
    model, handle = pruned
    ids, pictures = models.prompt(), models.pixels(0)
    wanted = logits(model, ids, pictures)
    kept, other = handle.report.stages[-1].kept().tolist(), models.hub(LAYERS)
    with visiondrop.apply(
        other, handle.plan.method, handle.plan.tokens, report=True, options=options_of(handle), **READS
    ) as hub:
        got = other(input_ids=torch.tensor([models.to_hub(ids)]), pixel_values=pictures).logits[:, -1, :512]
        assert hub.report.stages[-1].kept().tolist() == kept
    assert (got - wanted).abs().max() <= TOLERANCE


def test_only_text_guided_methods_depend_on_the_question(pruned):
    model, handle = pruned
    kept = []
    for seed, after in ((0, 22), (3, 9)):
        question = models.prompt()[:36] + models.prompt(seed, 35, after)[36:]
        logits(model, question, models.pixels(0))
        kept.append(handle.report.stages[-1].kept().tolist())
    assert (kept[0] == kept[1]) != handle.plan.text_guided
    assert handle.plan.text_guided == (
        handle.plan.method in TEXT_GUIDED and handle.plan.options.get("score") != "visual"
    )


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm", "vispruner", "random", "uniform", "pool"])
def test_a_budget_of_all_tokens_is_the_stock_model(native, method):
    ids, pictures = models.prompt(), models.pixels(0)
    stock = logits(native, ids, pictures)
    options = {"strict_budget": "on"} if method == "sparsevlm" else {}
    with visiondrop.apply(native, method=method, tokens=576, **options):
        assert torch.allclose(logits(native, ids, pictures), stock, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("settings", [dict(method="fastv", keep=0), dict(method="pyramiddrop", ratio="0.1,0,0")])
def test_no_visual_token_may_be_left(native, settings):
    with visiondrop.apply(native, report=True, **settings) as handle:
        native.generate(torch.tensor([models.prompt()]), images=models.pixels(0), max_new_tokens=2, do_sample=False)
        assert handle.report.tokens_per_layer[0] == handle.plan.tokens_per_layer() and handle.plan.counts[-1] == 0
        assert handle.report.cache_lengths[0] == [57 + n for n in handle.plan.tokens_per_layer()]
