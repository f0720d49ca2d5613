"""The pruned model against simpler computations: the stock model, one pass instead of steps, singles instead of a batch."""

import copy

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

import visiondrop
from tests.support import models

LAYERS = 8  # stages at 2, 4 and 6
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def native():
    return models.native(LAYERS)


@pytest.fixture(scope="module")
def hub():
    return models.hub(LAYERS)


@pytest.fixture(params=[("visual", "on"), ("visual", "off"), ("text", "on")], ids="-".join)
def pruned(request, native):
    score, merge = request.param
    with visiondrop.apply(native, tokens=64, score=score, merge=merge, report=True) as handle:
        yield native, handle


def rows(*prompts: list[int], side: str = "left"):
    return models.pad(list(prompts), side)


def logits(model, ids: list[int], pictures, **more):
    return model(input_ids=torch.tensor([ids]), images=pictures, **more).logits[:, -1]


def text_prompt(length: int = 30) -> list[int]:
    return [t for t in models.prompt(9, length, 0) if t >= 0]


def test_pruning_off_is_the_stock_model_bit_for_bit(native, hub):
    ids, pictures = models.prompt(), models.pixels(0)
    hub_ids = torch.tensor([models.to_hub(ids)])
    stock = hub(input_ids=hub_ids, pixel_values=pictures).logits[..., :512]

    def same(out):
        assert torch.equal(out, stock), (out - stock).abs().max()

    same(native(input_ids=torch.tensor([ids]), images=pictures).logits)
    for settings in ({"method": "none"}, {"tokens": 576, "encoder": "off"}):
        with visiondrop.apply(native, **settings):
            same(native(input_ids=torch.tensor([ids]), images=pictures).logits)
        with visiondrop.apply(hub, **settings):
            same(hub(input_ids=hub_ids, pixel_values=pictures).logits[..., :512])
    handle = visiondrop.apply(native, tokens=64)
    pruned = native(input_ids=torch.tensor([ids]), images=pictures).logits
    assert (pruned[:, -1] - stock[:, -1]).abs().max() > 1e-3  # the comparison above could have failed
    handle.remove(), handle.remove()
    same(native(input_ids=torch.tensor([ids]), images=pictures).logits)


def test_apply_replaces_and_leaves_other_models_alone(native):
    other = copy.deepcopy(native)
    ids, pictures = models.prompt(), models.pixels(0)
    before = logits(other, ids, pictures)
    first = visiondrop.apply(native, tokens=32)
    second = visiondrop.apply(native, tokens=64)
    assert not first.active and second.active
    once = logits(native, ids, pictures)
    first.remove()
    assert torch.equal(logits(native, ids, pictures), once)
    assert torch.equal(logits(other, ids, pictures), before)
    second.remove()


def test_cached_decoding_equals_one_pass(pruned):
    model, handle = pruned
    ids, pictures = models.prompt(), models.pixels(0)
    out = model.generate(
        torch.tensor([ids]),
        images=pictures,
        max_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = out.sequences[0].tolist()
    for step, got in enumerate(out.logits):
        wanted = logits(model, ids + new[:step], pictures)
        assert (got - wanted).abs().max() <= TOLERANCE, step


def test_cached_equals_uncached_for_greedy_and_beams(pruned):
    model, _ = pruned
    ids, mask = rows(models.prompt(), models.prompt(1, 35, 9))
    for settings in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        answers = [
            model.generate(
                ids,
                attention_mask=mask,
                images=models.pixels(0, 1),
                do_sample=False,
                max_new_tokens=5,
                use_cache=use_cache,
                **settings,
            )
            for use_cache in (True, False)
        ]
        assert torch.equal(*answers), settings


def test_batch_of_unequal_prompts_equals_singles(pruned):
    model, handle = pruned
    two_images = models.prompt(2, 12, 4) + models.prompt(3, 20, 7)[1:]
    prompts = [models.prompt(0), two_images, text_prompt(), models.prompt(1, 35, 9)]
    pictures = [models.pixels(0), models.pixels(1, 2), None, models.pixels(3)]
    ids, mask = rows(*prompts)
    options = dict(do_sample=False, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
    batch = model.generate(ids, attention_mask=mask, images=models.pixels(0, 1, 2, 3), **options)
    kept = [handle.report.stages[-1].kept(i) for i in range(4)]
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
    assert position == 4


def test_right_padding_and_plain_forward(pruned):
    model, _ = pruned
    prompts = [models.prompt(0), models.prompt(1, 35, 9)]
    left, right = rows(*prompts), rows(*prompts, side="right")
    out = [
        model(input_ids=ids, attention_mask=mask, images=models.pixels(0, 1)).logits[:, -1]
        for ids, mask in (left, right)
    ]
    assert (out[0] - out[1]).abs().max() <= TOLERANCE
    assert (out[0][1] - logits(model, prompts[1], models.pixels(1))[0]).abs().max() <= TOLERANCE


def test_second_turn_on_the_kept_cache_equals_from_scratch(pruned):
    model, handle = pruned
    ids, mask = rows(models.prompt(), models.prompt(1, 35, 9))
    pictures = models.pixels(0, 1)
    options = dict(do_sample=False, return_dict_in_generate=True, output_logits=True)
    first = model.generate(ids, attention_mask=mask, images=pictures, max_new_tokens=4, **options)
    turn = torch.tensor([text_prompt(7), text_prompt(8)[1:]])
    ids = torch.cat([ids, first.sequences, turn], dim=1)
    mask = torch.cat([mask, torch.ones(2, 11, dtype=mask.dtype)], dim=1)
    kept = model.generate(
        ids, attention_mask=mask, images=pictures, past_key_values=first.past_key_values, max_new_tokens=4, **options
    )
    scratch = model.generate(ids, attention_mask=mask, images=pictures, max_new_tokens=4, **options)
    assert torch.equal(kept.sequences, scratch.sequences)
    assert max((a - b).abs().max() for a, b in zip(kept.logits, scratch.logits)) <= TOLERANCE


def test_second_turn_needs_no_images_again(native):
    with visiondrop.apply(native, tokens=64):
        ids = torch.tensor([models.prompt()])
        first = native.generate(
            ids, images=models.pixels(0), max_new_tokens=3, do_sample=False, return_dict_in_generate=True
        )
        ids = torch.cat([ids, first.sequences, torch.tensor([text_prompt(6)])], dim=1)
        again = native.generate(
            ids, past_key_values=copy.deepcopy(first.past_key_values), max_new_tokens=4, do_sample=False
        )
        with_images = native.generate(
            ids, images=models.pixels(0), past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False
        )
        assert torch.equal(again, with_images)


def test_new_image_in_a_later_turn_runs_and_keeps_the_ledger(native):
    with visiondrop.apply(native, tokens=64, report=True) as handle:
        ids = torch.tensor([models.prompt()])
        first = native.generate(
            ids, images=models.pixels(0), max_new_tokens=3, do_sample=False, return_dict_in_generate=True
        )
        ids = torch.cat([ids, first.sequences, torch.tensor([models.prompt(4, 5, 6)])], dim=1)
        native.generate(
            ids, images=models.pixels(0, 5), past_key_values=first.past_key_values, max_new_tokens=2, do_sample=False
        )
        per_layer = handle.plan.tokens_per_layer()
        text = 57 + 3 + 11  # both turns; the last answer token of turn one is fed in turn two
        assert handle.report.cache_lengths[0] == [2 * n + text for n in per_layer]


def test_assisted_decoding_equals_greedy(pruned):
    model, _ = pruned
    ids = torch.tensor([models.prompt()])
    options = dict(images=models.pixels(0), do_sample=False, max_new_tokens=8)
    greedy = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), greedy)
    for assistant in (models.native(2), models.native(2, hidden_size=64, num_attention_heads=4, intermediate_size=64)):
        assert torch.equal(model.generate(ids, assistant_model=assistant, **options), greedy)


def test_sampling_is_reproducible_and_returns_new_tokens_only(native):
    with visiondrop.apply(native, tokens=64):
        ids = torch.tensor([models.prompt()])
        answers = []
        for _ in range(2):
            torch.manual_seed(0)
            answers.append(
                native.generate(ids, images=models.pixels(0), do_sample=True, num_return_sequences=3, max_new_tokens=4)
            )
        assert answers[0].shape == (3, 4) and torch.equal(*answers)


def test_eager_equals_sdpa(native):
    eager = models.native(LAYERS, attn="eager")
    ids, mask = rows(models.prompt(), models.prompt(1, 35, 9))
    options = dict(attention_mask=mask, images=models.pixels(0, 1), do_sample=False, max_new_tokens=4)
    out = []
    for model in (native, eager):
        with visiondrop.apply(model, tokens=64):
            result = model.generate(ids, output_logits=True, return_dict_in_generate=True, **options)
            out.append(torch.stack(result.logits))
    assert (out[0] - out[1]).abs().max() <= TOLERANCE


@pytest.mark.skipif(
    not is_flash_attn_2_available(), reason="flash attention 2 needs a CUDA GPU and the package flash-attn"
)
def test_flash_attention_chooses_the_same_answers():
    out = []
    for attn in ("sdpa", "flash_attention_2"):
        model = models.native(LAYERS, dtype=torch.float16, attn=attn).cuda()
        with visiondrop.apply(model, tokens=64):
            ids, mask = (x.cuda() for x in rows(models.prompt(), models.prompt(1, 35, 9)))
            result = model.generate(
                ids,
                attention_mask=mask,
                images=models.pixels(0, 1).cuda(),
                do_sample=False,
                max_new_tokens=4,
                output_logits=True,
                return_dict_in_generate=True,
            )
            out.append(result.logits[0])
    assert (out[0] - out[1]).abs().max() <= 0.1


def test_kept_tokens_and_visual_states_do_not_depend_on_the_question(native):
    with visiondrop.apply(native, tokens=64, report=True) as handle:
        seen = []
        for after in (22, 9):
            ids = models.prompt(0, 35, 0) + models.prompt(after, after, 0)[:-1]
            logits(native, ids, models.pixels(0))
            seen.append([(s.kept(0), s.hidden[0]) for s in handle.report.stages])
        for (kept_a, hidden_a), (kept_b, hidden_b) in zip(*seen):
            assert torch.equal(kept_a, kept_b)
            assert (hidden_a - hidden_b).abs().max() <= 1e-6


def test_hub_class_batches_beams_and_turns(hub):
    tokens = [models.to_hub(models.prompt()), models.to_hub(models.prompt(1, 35, 9))]
    ids, mask = models.pad(tokens)
    pictures = models.pixels(0, 1)
    with visiondrop.apply(hub, tokens=64):
        for settings in ({}, {"num_beams": 3}):
            answers = [
                hub.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    pixel_values=pictures,
                    do_sample=False,
                    max_new_tokens=4,
                    use_cache=use_cache,
                    **settings,
                )
                for use_cache in (True, False)
            ]
            assert torch.equal(*answers), settings
        singles = [
            hub.generate(
                input_ids=torch.tensor([t]), pixel_values=pictures[i : i + 1], do_sample=False, max_new_tokens=4
            )
            for i, t in enumerate(tokens)
        ]
        batch = hub.generate(
            input_ids=ids, attention_mask=mask, pixel_values=pictures, do_sample=False, max_new_tokens=4
        )
        for row, single in enumerate(singles):
            assert batch[row, -4:].tolist() == single[0, -4:].tolist()
        first = hub.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pictures,
            do_sample=False,
            max_new_tokens=3,
            return_dict_in_generate=True,
        )
        longer = torch.cat([first.sequences, torch.tensor([text_prompt(5), text_prompt(6)[1:]])], dim=1)
        long_mask = torch.cat([mask, torch.ones(2, longer.shape[1] - mask.shape[1], dtype=mask.dtype)], dim=1)
        kept = hub.generate(
            input_ids=longer,
            attention_mask=long_mask,
            past_key_values=first.past_key_values,
            do_sample=False,
            max_new_tokens=4,
        )
        scratch = hub.generate(
            input_ids=longer, attention_mask=long_mask, pixel_values=pictures, do_sample=False, max_new_tokens=4
        )
        assert torch.equal(kept, scratch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decodes_close_to_one_pass(dtype):
    model = models.native(LAYERS, dtype=dtype)
    with visiondrop.apply(model, tokens=64):
        out = model.generate(
            torch.tensor([models.prompt()]),
            images=models.pixels(0),
            do_sample=False,
            max_new_tokens=4,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new = out.sequences[0].tolist()
        assert (out.logits[2] - logits(model, models.prompt() + new[:2], models.pixels(0))).abs().max() <= 0.1
