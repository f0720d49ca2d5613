"""LLaVA-NeXT over Mistral, Yi and Llama 3: prompts, loading and pruning, against transformers' own classes."""

import pytest
import torch

import visiondrop
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.prompts import prompt_of, template_of
from tests.support import decoders, models, next_models
from tests.support.loading import edit, load
from visiondrop.api import handle_of
from visiondrop.errors import UnsupportedError

BASES = list(decoders.DECODERS)
SIZES = [(300, 200), (112, 112)]
QUESTION, WHERE = [9, 17, 30, 4], 3
METHODS = {
    "visiondrop": {"tokens": 80},
    "fastv": {"tokens": 160},
    "pyramiddrop": {"tokens": 160},
    "sparsevlm": {"options": {"keep": "100,60,20"}},
    "none": {},
}


@pytest.fixture(scope="module", params=BASES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def stock(name):
    """transformers' class, in which nothing is hooked when a test begins."""
    return decoders.hub(name)


@pytest.fixture(scope="module")
def loaded(name, tmp_path_factory):
    """(tokenizer, native model) of the original layout."""
    return load(decoders.write_original(tmp_path_factory.mktemp(name), name))[:2]


def rows():
    return [[1, 5, 6, -200, *QUESTION], [1, 8, -200, 11, 12]]


def native_logits(model, row, images, sizes):
    return model(input_ids=torch.tensor([row]), images=images, image_sizes=sizes).logits


def to_hub(stock, native, images, sizes, rows):
    """Inputs of the hub's class, whose placeholder is another for every decoder."""
    inputs = next_models.to_hub(native, images, sizes, rows)
    ids = inputs["input_ids"]
    inputs["input_ids"] = torch.where(ids == models.HUB_IMAGE_ID, stock.config.image_token_id, ids)
    return inputs


@pytest.mark.parametrize("layout", ["original", "hub"])
def test_every_layout_equals_stock(name, stock, layout, tmp_path):
    write = decoders.write_original if layout == "original" else decoders.write_hub
    tokenizer, model, processor, _ = load(write(tmp_path, name))
    vocabulary = decoders.DECODERS[name][1]
    pictures = [next_models.picture(*size, seed) for seed, size in enumerate(SIZES)]
    images = process_images(pictures, processor, model.config)
    ids, mask = models.pad(rows())
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, images=images, image_sizes=SIZES).logits[:, -1, :vocabulary]
        expected = stock(**to_hub(stock, model, images, SIZES, rows())).logits[:, -1, :vocabulary]
    assert (found - expected).abs().max() <= 1e-5
    assert (
        model.model.layers[0].self_attn.k_proj.out_features * 2 == model.model.layers[0].self_attn.q_proj.out_features
    )
    assert template_of(model.config) == template_of(stock.config) == decoders.TEMPLATES[name]


def test_off_is_stock_to_the_last_bit(stock, loaded):
    native = loaded[1]
    images, sizes = next_models.inputs(native, *SIZES)
    inputs = to_hub(stock, native, images, sizes, rows())
    with torch.no_grad():
        before, own = stock(**inputs).logits, native_logits(native, rows()[0], images[:1], sizes[:1])
        with visiondrop.apply(stock, "none"), visiondrop.apply(native, "none"):
            assert torch.equal(stock(**inputs).logits, before)
            assert torch.equal(native_logits(native, rows()[0], images[:1], sizes[:1]), own)
        with visiondrop.apply(stock, tokens=80):
            assert not torch.equal(stock(**inputs).logits[:, -1], before[:, -1])
        assert torch.equal(stock(**inputs).logits, before)


@pytest.mark.parametrize("method", METHODS)
def test_front_ends_agree_cached_is_one_pass_and_a_batch_is_its_rows(stock, loaded, method):
    native, vocabulary = loaded[1], loaded[1].config.vocab_size
    images, sizes = next_models.inputs(native, *SIZES)
    ids, mask = models.pad(rows())
    inputs = to_hub(stock, native, images, sizes, rows())
    greedy = {"do_sample": False, "max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    settings = {"method": method, **METHODS[method]}
    with torch.no_grad(), visiondrop.apply(native, **settings):
        own = native.generate(ids, attention_mask=mask, images=images, image_sizes=sizes, **greedy)
        for i, row in enumerate(rows()):
            longer = row + own.sequences[i, :3].tolist()
            handle_of(native).reset()
            alone = native.generate(
                torch.tensor([row]), images=images[i : i + 1], image_sizes=sizes[i : i + 1], **greedy
            )
            assert alone.sequences[0].tolist() == own.sequences[i].tolist()
            for step in range(4):
                assert (alone.logits[step][0] - own.logits[step][i]).abs().max() <= 1e-5
            again = native_logits(native, longer, images[i : i + 1], sizes[i : i + 1])
            assert (again[0, -1] - own.logits[3][i]).abs().max() <= 1e-5
    with torch.no_grad(), visiondrop.apply(stock, **settings):
        theirs = stock.generate(**inputs, **greedy)
    assert theirs.sequences[:, inputs["input_ids"].shape[1] :].tolist() == own.sequences.tolist()
    for a, b in zip(own.logits, theirs.logits):
        assert (a - b[:, :vocabulary]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "settings, layer, rule",
    [
        ({"method": "fastv", "options": {"k": 3, "keep": 40}}, 2, "last"),
        ({"method": "pyramiddrop", "options": {"layers": "3", "ratio": "0.3"}}, 3, "last"),
        ({"method": "visiondrop", "tokens": 200, "options": {"encoder": "off"}}, None, "received"),
    ],
)
def test_scores_of_shared_key_heads_are_eager_attention(name, loaded, settings, layer, rule):
    native = loaded[1]
    images, sizes = next_models.inputs(native, SIZES[0])
    row = rows()[0]
    eager = decoders.hub(name, attention="eager")
    inputs = to_hub(eager, native, images, sizes, [row])
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True).attentions
        with visiondrop.apply(native, report=True, **settings) as handle:
            native(input_ids=torch.tensor([row]), images=images, image_sizes=sizes)
            stage = handle.report.stages[0]
    visual = slice(WHERE, WHERE + native.pictures(images, sizes)[0].shape.tokens)
    attention = maps[stage.layer if layer is None else layer][0]
    wanted = attention[:, -1, visual].mean(0) if rule == "last" else attention[:, visual, visual].mean((0, 1))
    assert (stage.scores[0] - wanted).abs().max() <= 1e-6


# Windows --------------------------------------------------------------------------------------------------------------


def test_a_sliding_window_is_refused_in_both_front_ends(tmp_path):
    path = decoders.write_original(tmp_path, "mistral")
    for window in (4096, 7):
        edit(path / "config.json", sliding_window=window)
        with pytest.raises(UnsupportedError, match=f"sliding window of {window} tokens.*null"):
            load(path)
    model = decoders.hub("mistral", sliding_window=64)
    with pytest.raises(UnsupportedError, match="sliding window of 64 tokens"):
        visiondrop.apply(model, tokens=80)
    model.config.text_config.sliding_window = None  # what the sentence says
    visiondrop.apply(model, tokens=80).remove()


def test_a_hub_file_with_a_window_is_refused(tmp_path):
    path = tmp_path / "windowed"
    decoders.hub("mistral", sliding_window=64).save_pretrained(path)
    with pytest.raises(UnsupportedError, match="sliding window of 64"):
        load(path)


# Prompts and tokens ---------------------------------------------------------------------------------------------------


def test_turn_tokens_are_whole_and_begin_tokens_single(name, loaded):
    tokenizer, model = loaded
    ids = tokenizer_image_token(prompt_of(model.config, "What?"), tokenizer)
    assert ids.count(-200) == 1
    if name == "yi":
        assert ids[0] == 6 and ids.count(6) == 3 and ids.count(7) == 2 and 1 not in ids
    elif name == "llama3":
        begin, start, turn = map(
            tokenizer.convert_tokens_to_ids, ("<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>")
        )
        assert ids[0] == begin and ids.count(begin) == 1 and ids.count(start) == 3 and ids.count(turn) == 2
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
    else:
        assert ids[0] == 1 and ids.count(1) == 1 and 2 not in ids
    assert conv_templates[decoders.TEMPLATES[name]].stop == {"mistral": "</s>", "yi": "<|im_end|>"}.get(
        name, "<|eot_id|>"
    )


def test_answers_end_with_the_turn(name, loaded):
    tokenizer, model = loaded
    end = {"yi": [7], "llama3": [tokenizer.convert_tokens_to_ids("<|eot_id|>")]}.get(name)
    assert model.generation_config.eos_token_id == end


@pytest.mark.parametrize("kind", ["native", "hub"])
def test_encode_asks_in_the_checkpoint_s_template(name, stock, loaded, kind, monkeypatch):
    tokenizer, native = loaded
    model, seen = (native, {}) if kind == "native" else (stock, {})

    class Recorder:
        def inputs(self, ids, image, processor):
            seen["before"] = ids
            return {}

    monkeypatch.setattr("visiondrop.reuse.session.adapter_for", lambda _: Recorder())
    monkeypatch.setattr("visiondrop.reuse.session.encode_prefix", lambda *_, **__: None)
    session = visiondrop.encode(model, None, tokenizer=tokenizer)
    whole = tokenizer_image_token(prompt_of(model.config, "What is red?"), tokenizer)
    assert [*seen["before"], -200, *session._ids("What is red?")] == whole
