"""Image reuse: a session's answers and logits against whole prompts that were never cached."""

from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

import visiondrop
from eval.efficiency.models import CLIP_TINY, build
from tests.support import next_models, video_models
from visiondrop.reuse.prefix import continue_prefix, encode_prefix, next_logits
from visiondrop.reuse.recent import fingerprint
from visiondrop.reuse.store import PrefixStore

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BEFORE, QUESTIONS = [1, 5, 9, 12], [[7, 8, 30, 31, 4], [11], [40, 41, 42]]
BUDGETS = {"none": None, "sparsevlm": 192}  # others: 300, which every one of them reaches in a shallow stack
VISUAL_ONLY = [
    ("visiondrop", {"tokens": 64}),
    ("visiondrop", {"tokens": 200, "encoder": "off"}),
    ("visiondrop", {"tokens": 64, "merge": "off"}),
    ("none", {}),
]


@pytest.fixture(scope="module")
def model():
    return build(TINY, {**CLIP_TINY, "num_hidden_layers": 4}, vocab=64)  # as deep as methods inside the tower need


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(1))


def prefix_of(model, pixels):
    return encode_prefix(model, torch.tensor([[*BEFORE, -200]]), images=pixels)


def whole(question, pixels):
    return {"input_ids": torch.tensor([[*BEFORE, -200, *question]]), "images": pixels}


@pytest.mark.parametrize("method, settings", VISUAL_ONLY)
def test_equal_to_whole_prompts(model, pixels, method, settings):
    with visiondrop.apply(model, method, **settings):
        prefix = prefix_of(model, pixels)
        logits = next_logits(model, prefix, QUESTIONS)
        new = continue_prefix(model, prefix, QUESTIONS, max_new_tokens=6, do_sample=False)
        for i, question in enumerate(QUESTIONS):
            with torch.no_grad():
                expected = model(**whole(question, pixels)).logits[0, -1]
            assert (logits[i] - expected).abs().max() <= 1e-5, f"question {i}"
            alone = model.generate(**whole(question, pixels), max_new_tokens=6, do_sample=False)
            assert new[i].tolist() == alone[0].tolist()


@pytest.mark.parametrize("method", visiondrop.available())
def test_every_method_is_exact_or_refused(model, pixels, method):
    with visiondrop.apply(model, method, BUDGETS.get(method, 300)) as handle:
        if handle.plan.text_guided:
            with pytest.raises(visiondrop.UnsupportedError, match="reads the question"):
                prefix_of(model, pixels)
            return
        logits = next_logits(model, prefix_of(model, pixels), QUESTIONS)
        expected = torch.cat([model(**whole(question, pixels)).logits[:, -1] for question in QUESTIONS])
        assert (logits - expected).abs().max() <= 1e-5


def test_which_methods_are_refused():
    guided = {m for m in visiondrop.available() if visiondrop.plan(m, BUDGETS.get(m, 300)).text_guided}
    assert guided >= {"fastv", "sparsevlm", "pyramiddrop"}
    assert not guided & {"none", "visiondrop", "visionzip", "vispruner", "random", "uniform"}


@pytest.mark.parametrize("kind", ["native", "hub"])
def test_crops_and_several_images(kind):
    """LLaVA-NeXT with two images of unequal crops before the question."""
    native = next_models.native(8)
    images, sizes = next_models.inputs(native, (300, 200), (112, 112))
    rows = [[5, 6, -200, 7, -200, *question] for question in QUESTIONS]
    model = native if kind == "native" else next_models.hub(8)

    def inputs(row):
        if kind == "native":
            return {"input_ids": torch.tensor([row]), "images": images, "image_sizes": sizes}
        return next_models.to_hub(native, images, sizes, [row])

    with visiondrop.apply(model, tokens=40):
        given = inputs(rows[0][:5])
        given.pop("attention_mask", None)
        logits = next_logits(model, encode_prefix(model, given.pop("input_ids"), **given), QUESTIONS)
        expected = torch.cat([model(**inputs(row)).logits[:, -1] for row in rows])
        assert (logits - expected).abs().max() <= 1e-5


def test_questions_do_not_disturb_the_prefix(model, pixels):
    with visiondrop.apply(model, tokens=64):
        prefix = prefix_of(model, pixels)
        before = [layer.keys.clone() for layer in prefix.cache.layers]
        first = next_logits(model, prefix, QUESTIONS)
        continue_prefix(model, prefix, QUESTIONS[::-1], max_new_tokens=3, do_sample=False)
        assert torch.equal(first, next_logits(model, prefix, QUESTIONS))
        assert all(torch.equal(a, layer.keys) for a, layer in zip(before, prefix.cache.layers))


def test_beams(model, pixels):
    settings = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    with visiondrop.apply(model, tokens=64):
        new = continue_prefix(model, prefix_of(model, pixels), QUESTIONS[:1], **settings)
        assert new.tolist() == model.generate(**whole(QUESTIONS[0], pixels), **settings).tolist()


def test_prefix_bytes_follow_the_ledger(model, pixels):
    with visiondrop.apply(model, tokens=64) as handle:
        prefix = prefix_of(model, pixels)
        entry = 2 * TINY["num_key_value_heads"] * (TINY["hidden_size"] // TINY["num_attention_heads"]) * 4
        assert prefix.bytes == entry * sum(n + len(BEFORE) for n in handle.ledger.tokens_per_layer)
        assert prefix.length == len(BEFORE) + 576


def test_text_guided_methods_are_refused(model, pixels):
    with visiondrop.apply(model, tokens=64, score="text"):
        with pytest.raises(visiondrop.UnsupportedError, match="reads the question"):
            prefix_of(model, pixels)


def test_another_method_needs_another_encoding(model, pixels):
    with visiondrop.apply(model, tokens=64):
        prefix = prefix_of(model, pixels)
    with pytest.raises(visiondrop.VisionDropError, match="encode it again"):
        next_logits(model, prefix, QUESTIONS)


def test_empty_question_is_refused(model, pixels):
    with visiondrop.apply(model, tokens=64):
        with pytest.raises(visiondrop.VisionDropError, match="at least one id"):
            next_logits(model, prefix_of(model, pixels), [[4], []])


class Words:
    """A tokenizer of numbers: "7 8" <-> [7, 8], with a start token 1."""

    bos_token_id = 1

    def __call__(self, text):
        ids = [1, *(int(word) for word in text.split() if word.isdigit())]
        return type("Encoding", (), {"input_ids": ids})

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(str(int(i)) for i in row) for row in rows]


def test_ask(model, pixels):
    with visiondrop.apply(model, tokens=64):
        session = visiondrop.encode(model, pixels, tokenizer=Words(), prompt="5 9 12 <image> {question}")
        answers = session.ask(["7 8 30 31 4", "11"], max_new_tokens=4)
        assert answers[0] == session.ask("7 8 30 31 4", max_new_tokens=4)
        assert answers == session.ask(["7 8 30 31 4", "11"], max_new_tokens=4, batch_size=1)
        alone = model.generate(**whole([11], pixels), max_new_tokens=4, do_sample=False)
        assert answers[1] == " ".join(map(str, alone[0].tolist()))


def test_encode_applies_and_stores(model, pixels):
    store = PrefixStore(1 << 30)
    arguments = {"tokenizer": Words(), "prompt": "5 <image> {question}", "store": store}
    first = visiondrop.encode(model, pixels, method="visiondrop", tokens=64, **arguments)
    second = visiondrop.encode(model, pixels[0], **arguments)
    assert second.prefix is first.prefix and (store.hits, store.misses, len(store)) == (1, 1, 1)
    visiondrop.apply(model, "none").remove()


def test_a_picture_is_prepared_and_seen_once(model):
    """Other prompts, methods and budgets find the prepared picture and the tower's states; results stay; new pictures do not."""
    prepare, ran, store = CLIPImageProcessor(crop_size=336, size=336), [], PrefixStore(1 << 30)
    prepare.preprocess = Mock(side_effect=prepare.preprocess)
    pictures = [Image.new("RGB", (400, 300), colour) for colour in ("red", "teal", "red")]
    layers = model.get_vision_tower().clip.encoder.layers
    hooks = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in layers]

    def logits(picture, held, tokens, before=BEFORE, method="visionzip"):
        given = {"ids": before, "image_processor": prepare, "method": method, "tokens": tokens, "store": held}
        return visiondrop.encode(model, picture, **given).logits(QUESTIONS)

    asked = [(64, BEFORE), (32, BEFORE), (64, [1, 6])]
    expected = [logits(pictures[0], None, *each) for each in asked]
    prepare.preprocess.reset_mock(), ran.clear()
    for _ in range(2):
        for each, wanted in zip(asked, expected):
            assert torch.allclose(logits(pictures[0], store, *each), wanted, atol=1e-6)
    assert prepare.preprocess.call_count == 2  # once for each prompt's ids
    assert len(ran) == 3 + 5  # three layers up to the one whose attention is read, then that one for each encoding
    assert torch.allclose(logits(pictures[2], store, 64), expected[0], atol=1e-6)
    assert prepare.preprocess.call_count == 2
    assert torch.allclose(logits(pictures[1], store, 64), logits(pictures[1], None, 64), atol=1e-6)
    assert not torch.allclose(logits(pictures[1], store, 64), expected[0], atol=1e-3)
    for hook in hooks:
        hook.remove()
    visiondrop.apply(model, "none").remove()


def test_a_second_image_leaves_the_first_session_good(model, pixels):
    settings = {"ids": BEFORE, "method": "visiondrop", "tokens": 64}
    first = visiondrop.encode(model, pixels, **settings)
    expected = first.logits(QUESTIONS)
    second = visiondrop.encode(model, -pixels, **settings)
    assert torch.equal(first.logits(QUESTIONS), expected) and not torch.equal(second.logits(QUESTIONS), expected)
    alone = model.generate(**whole(QUESTIONS[1], pixels), max_new_tokens=4, do_sample=False)
    assert first.ask(QUESTIONS, max_new_tokens=4)[1] == alone[0].tolist()
    with pytest.raises(visiondrop.VisionDropError, match="needs a tokenizer"):
        first.ask("What?")
    visiondrop.apply(model, "none").remove()


def test_a_video_serves_many_questions():
    model, video = video_models.native(8), video_models.video(0)
    with visiondrop.apply(model, tokens=64):
        session = visiondrop.encode(model, video, ids=BEFORE)
        rows = [[*BEFORE, *[-200] * video_models.FRAMES, *question] for question in QUESTIONS]
        expected = torch.cat([model(input_ids=torch.tensor([row]), images=[video]).logits[:, -1] for row in rows])
        assert (session.logits(QUESTIONS) - expected).abs().max() <= 1e-5
        answers = session.ask(QUESTIONS, max_new_tokens=3)
        assert answers == session.ask(QUESTIONS, max_new_tokens=3, batch_size=2)
        for wrong in (0, -1):
            with pytest.raises(visiondrop.VisionDropError, match="positive number"):
                session.ask(QUESTIONS, batch_size=wrong)


def test_a_refused_encoding_leaves_the_model_as_stock(model, pixels):
    with pytest.raises(visiondrop.UnsupportedError, match="reads the question"):
        visiondrop.encode(model, pixels, ids=BEFORE, tokens=300, method="fastv")
    assert model.pruner is None
    with pytest.raises(visiondrop.VisionDropError, match="tokenizer= for the prompt"):
        visiondrop.encode(model, pixels, tokens=64)
    visiondrop.apply(model, "none").remove()


@pytest.mark.parametrize("prompt", ["no image {question}", "<image> no place", "<image> <image> {question}"])
def test_prompts_without_their_places_are_refused(model, pixels, prompt):
    with pytest.raises(visiondrop.VisionDropError, match="must hold one <image>"):
        visiondrop.encode(model, pixels, tokenizer=Words(), prompt=prompt)


class Sized:
    def __init__(self, size):
        self.bytes = size


def test_store_drops_the_least_recently_used():
    store = PrefixStore(100)
    a, b, c = Sized(40), Sized(40), Sized(40)
    store.put("a", a), store.put("b", b)
    assert store.get("a") is a
    store.put("c", c)
    assert store.get("b") is None and store.get("a") is a and store.get("c") is c
    assert store.bytes == 80 and len(store) == 2
    store.put("large", Sized(101))
    assert store.get("large") is None and store.bytes == 80
    store.put("a", Sized(10))
    assert store.bytes == 50
    store.clear()
    assert store.bytes == 0 and len(store) == 0


def test_fingerprint_tells_contents_apart():
    x = torch.arange(6.0)
    assert fingerprint(x) == fingerprint(x.clone()) != fingerprint(x + 1)
    assert fingerprint(x.view(2, 3)) != fingerprint(x.view(3, 2))
    assert fingerprint(x, [1, 2]) != fingerprint(x, [1, 3])
