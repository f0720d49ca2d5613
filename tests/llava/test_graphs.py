"""`compile=True`: the same greedy answers as `generate`; compiled or plain code on the CPU, graphs on a card."""

import logging
from unittest import mock

import pytest
import torch
from transformers import DynamicCache

import visiondrop
from eval.efficiency.models import build, build_stock, pictures
from llava.static import decode as fixed
from llava.static import replay
from llava.static.generate import Prompts, StaticGenerator, StaticPrompts
from tests.support import models as golden
from tests.support import next_models, video_models
from visiondrop.reuse.prefix import continue_prefix, encode_prefix, next_logits
from visiondrop.stack.rows import Rows

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
METHODS = [
    ("none", {}),
    ("visiondrop", {"tokens": 64}),
    ("visiondrop", {"tokens": 200, "encoder": "off"}),
    ("visiondrop", {"tokens": 64, "score": "text"}),
    ("fastv", {"tokens": 200}),
    ("vispruner", {"tokens": 64}),
]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return build(TINY, vocab=64, attention=request.param, device=DEVICE)


@pytest.fixture(scope="module")
def plain():
    return build(TINY, vocab=64, device=DEVICE)


def inputs(model, rows, seed=0, before=4, after=6):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (rows, before + 1 + after), generator=draw)
    ids[:, before] = -200
    return ids.to(model.device), pictures(model, rows, seed)


def ragged(model, tails, before=4):
    """Left-padded prompts whose questions have these lengths: ids, mask, pixels."""
    ids, pixels = inputs(model, len(tails), after=max(tails))
    mask = torch.ones_like(ids)
    for row, tail in enumerate(tails):
        gap = max(tails) - tail
        ids[row] = torch.cat([torch.zeros(gap, device=ids.device).long(), ids[row, : ids.shape[1] - gap]])
        mask[row, :gap] = 0
    return ids, mask, pixels


def generator(model, compiler=None, **more) -> StaticGenerator:
    return StaticGenerator(model, compiler, **more)


def greedy(model, ids, pixels, new=12, **more):
    return model.generate(ids, images=pixels, do_sample=False, max_new_tokens=new, **more)


@pytest.mark.parametrize("method, options", METHODS)
def test_same_answers_as_generate(model, method, options):
    with visiondrop.apply(model, method, **options):
        static = generator(model)
        for seed, after in ((0, 6), (1, 6), (2, 6)):  # later prompts are served by what was made for the first
            ids, pixels = inputs(model, 2, seed, after=after)
            assert torch.equal(static.generate(ids, pixels, max_new_tokens=12), greedy(model, ids, pixels))
        assert len(static._made) == 1 and static.calls == {"static": 3, "eager": 0}


@pytest.mark.parametrize("method, options", METHODS[:3])
def test_questions_of_different_lengths_share_a_graph(model, method, options):
    with visiondrop.apply(model, method, **options):
        static = generator(model)
        for tails in ([5, 8, 2], [1, 3, 3], [8, 8, 8]):
            ids, mask, pixels = ragged(model, tails)
            expected = greedy(model, ids, pixels, attention_mask=mask)
            assert torch.equal(static.generate(ids, pixels, attention_mask=mask, max_new_tokens=12), expected)
        assert len(static._made) == 1


def keys_and_values(model, ids, pixels):
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        logits = model(ids, images=pixels, past_key_values=cache, logits_to_keep=1).logits
    return logits[:, -1], [(layer.keys, layer.values) for layer in cache.layers]


@pytest.mark.skipif(DEVICE != "cpu", reason="on a card graphs are used, not torch.compile")
@pytest.mark.parametrize("method, options", METHODS[:2])
def test_compiled_layers_change_nothing(plain, method, options):
    """aot_eager traces and cuts graphs like the real compiler, and leaves out the C++."""
    ids, pixels = inputs(plain, 2, after=8)
    chosen = []

    def spy(self, change):
        chosen.append(None if change.selection is None else change.selection.index)
        return splice(self, change)

    splice = Rows._splice
    with visiondrop.apply(plain, method, **options), mock.patch.object(Rows, "_splice", spy):
        logits, expected = keys_and_values(plain, ids, pixels)
        kept, chosen = list(chosen), []
        static = generator(plain, "aot_eager")
        with torch.inference_mode():
            prompts = Prompts.read(plain, ids, None, pixels, None)
            made = StaticPrompts(plain, prompts, 32, static.how)
            made.start(prompts)
        assert len(kept) == len(chosen) == (4 if options else 0)
        assert all(a is b or torch.equal(a, b) for a, b in zip(kept, chosen))
        assert (made.decoder.logits[:, 0] - logits).abs().max() <= 1e-5
        for n, (keys, values), *buffers in zip(
            made.decoder.cache.lengths, expected, made.decoder.cache.keys, made.decoder.cache.values
        ):
            assert n == keys.shape[2]
            for found, wanted in zip(buffers, (keys, values)):
                assert (found[:, :, :n] - wanted).abs().max() <= 1e-5
        assert torch.equal(static.generate(ids, pixels, max_new_tokens=12), greedy(plain, ids, pixels))
        assert not static.failed and not static.notice.sentences


@pytest.mark.skipif(DEVICE != "cpu", reason="on a card graphs are used, not torch.compile")
def test_no_step_compiles_again(plain):
    from torch._dynamo.utils import counters

    with visiondrop.apply(plain, tokens=64):
        static = generator(plain, "aot_eager")
        ids, pixels = inputs(plain, 1)
        static.generate(ids, pixels, max_new_tokens=4)
        made = counters["stats"]["unique_graphs"]
        for seed in (3, 4):
            ids, pixels = inputs(plain, 1, seed, after=3 + seed)
            static.generate(ids, pixels, max_new_tokens=30)
        assert made > 0 and counters["stats"]["unique_graphs"] == made
        assert not any("forward" in layer.__dict__ for layer in plain.model.layers)


@pytest.mark.skipif(DEVICE != "cpu", reason="on a card graphs are used, not torch.compile")
def test_the_real_compiler():
    """One length and batch size, two layers' worth of graphs: the rest is what aot_eager shows."""
    model = build({**TINY, "num_hidden_layers": 2}, vocab=64)
    ids, pixels = inputs(model, 1)
    expected = greedy(model, ids, pixels, 3)
    with visiondrop.apply(model, "none", compile=True):
        found = greedy(model, ids, pixels, 3)
        if model.static.failed:
            pytest.skip(f"no working compiler here: {model.static.notice.sentences}")
        assert torch.equal(found, expected) and model.static.calls == {"static": 1, "eager": 0}


@pytest.mark.skipif(DEVICE != "cpu", reason="on a card graphs are used, not torch.compile")
def test_a_broken_compiler_is_told_once_and_changes_nothing(plain, monkeypatch, caplog):
    def broken(graph, example):
        raise RuntimeError("g++: internal compiler error\nand a page of details")

    first_pass, step = (torch.compile(f, backend=broken, fullgraph=True) for f in (replay._first_pass, replay._step))
    monkeypatch.setattr(replay, "_compiled", lambda backend: (first_pass, step))
    ids, pixels = inputs(plain, 2)
    expected = greedy(plain, ids, pixels)
    with visiondrop.apply(plain, "none", compile=True), caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(greedy(plain, ids, pixels), expected)
        assert plain.static.failed
    (told,) = [r.getMessage() for r in caplog.records if "compile:" in r.getMessage()]
    assert "torch.compile failed on this machine" in told and "same answers" in told and "\n" not in told


def test_switching_on_and_off(plain):
    ids, pixels = inputs(plain, 1)
    with visiondrop.apply(plain, tokens=64) as handle:
        assert plain.static is None and handle.active, "off by default"
        expected = greedy(plain, ids, pixels)
    with mock.patch.object(StaticGenerator.__init__, "__defaults__", (None, 16)):
        handle = visiondrop.apply(plain, tokens=64, compile=True)
    assert torch.equal(greedy(plain, ids, pixels), expected) and plain.static.calls["static"] == 1
    handle.remove()
    assert plain.static is None and "static" not in plain.__dict__


def test_hooked_models_say_that_they_run_eagerly(caplog):
    model = build_stock({**TINY, "num_hidden_layers": 4}, vocab=64)
    with visiondrop.apply(model, tokens=64, compile=True):
        assert len(caplog.records) == 1 and "runs eagerly" in caplog.text


def test_ends(model):
    ids, pixels = inputs(model, 3)
    with visiondrop.apply(model, tokens=64):
        free = greedy(model, ids, pixels)
        config = model.generation_config
        config.eos_token_id = [int(free[0, 2]), int(free[1, 5])]
        try:
            expected = greedy(model, ids, pixels)
            assert torch.equal(generator(model).generate(ids, pixels, max_new_tokens=12), expected)
            assert expected.shape[1] < 12 or (expected == config.pad_token_id).any()
            first = greedy(model, ids, pixels, eos_token_id=int(free[0, 0]), pad_token_id=5)
            found = generator(model).generate(
                ids, pixels, max_new_tokens=12, eos_token_id=int(free[0, 0]), pad_token_id=5
            )
            assert torch.equal(found, first)
        finally:
            config.eos_token_id = None


def test_long_answers_get_more_room(plain, monkeypatch):
    monkeypatch.setattr(fixed, "ROOMS", (4, 8, 32))
    monkeypatch.setattr("llava.static.generate.FIRST_ROOM", 4)
    with visiondrop.apply(plain, tokens=64):
        static = generator(plain)
        for seed in (0, 1):
            ids, pixels = inputs(plain, 2, seed)
            found = static.generate(ids, pixels, max_new_tokens=20)
            assert torch.equal(found, greedy(plain, ids, pixels, 20))
        (made,) = static._made.values()
        assert made.decoder.cache.room == 32 and set(made.decoder._steps) == {4, 8, 32}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"do_sample": True}, "do_sample"),
        ({"num_beams": 2}, "num_beams"),
        ({"repetition_penalty": 1.5}, "repetition_penalty"),
        ({"use_cache": False}, "use_cache"),
    ],
)
def test_what_has_no_static_shape_runs_as_ever(plain, settings, words, caplog):
    ids, pixels = inputs(plain, 1)
    with visiondrop.apply(plain, tokens=64, compile=True):
        torch.manual_seed(0)
        found = plain.generate(ids, images=pixels, max_new_tokens=3, **settings)
        assert plain.static.calls == {"static": 0, "eager": 1} and words in caplog.text
    with visiondrop.apply(plain, tokens=64):
        torch.manual_seed(0)
        assert torch.equal(found, plain.generate(ids, images=pixels, max_new_tokens=3, **settings))


def test_other_reasons(plain):
    ids, pixels = inputs(plain, 2)
    two = torch.cat([ids[:1], ids[:1]], dim=1)
    with visiondrop.apply(plain, tokens=64, report=True):
        assert generator(plain).generate(ids, pixels, max_new_tokens=3) is None
    with visiondrop.apply(plain, "random", tokens=64):
        assert generator(plain).generate(ids, pixels, max_new_tokens=3) is None
    with visiondrop.apply(plain, tokens=64, score="text"):
        found, mask, pixels = ragged(plain, [2, 5])
        assert generator(plain).generate(found, pixels, attention_mask=mask, max_new_tokens=3) is None
    with visiondrop.apply(plain, tokens=64):
        static = generator(plain)
        assert static.generate(two, pixels, max_new_tokens=3) is None  # two images in one row
        assert static.generate(ids, None, max_new_tokens=3) is None
        assert static.generate(ids, pixels) is None  # no max_new_tokens
        assert static.calls["static"] == 0 and len(static.notice.sentences) == 3


def test_wrong_arguments_are_refused_as_ever(plain):
    ids, pixels = inputs(plain, 2)
    with visiondrop.apply(plain, tokens=64, compile=True):
        with pytest.raises(visiondrop.VisionDropError, match="placeholders"):
            greedy(plain, ids, torch.cat([pixels, pixels]))


QUESTIONS = [[7, 8, 30, 31, 4], [11], [40, 41, 42]]


@pytest.mark.parametrize("method, options", METHODS[:3])
def test_questions_behind_a_prefix(model, method, options):
    with visiondrop.apply(model, method, **options):
        first, second = (
            encode_prefix(model, torch.tensor([[1, 5, 9, -200]], device=DEVICE), images=pictures(model, 1, seed))
            for seed in (0, 1)
        )
        static = generator(model)
        for prefix, rows in ((first, QUESTIONS), (second, QUESTIONS), (second, QUESTIONS[::-1]), (first, QUESTIONS)):
            expected = continue_prefix(model, prefix, rows, do_sample=False, max_new_tokens=12)
            assert torch.equal(static.behind(prefix, rows, do_sample=False, max_new_tokens=12), expected)
        assert len(static._made) == 1 and static.calls == {"static": 4, "eager": 0}


@pytest.mark.skipif(DEVICE != "cpu", reason="on a card graphs are used, not torch.compile")
def test_compiled_questions_behind_a_prefix(plain):
    with visiondrop.apply(plain, tokens=64):
        prefix = encode_prefix(plain, torch.tensor([[1, 5, 9, -200]]), images=pictures(plain, 1))
        expected = continue_prefix(plain, prefix, QUESTIONS, do_sample=False, max_new_tokens=6)
        static = generator(plain, "aot_eager")
        plain.static = static
        assert torch.equal(continue_prefix(plain, prefix, QUESTIONS, do_sample=False, max_new_tokens=6), expected)
        assert static.calls == {"static": 1, "eager": 0} and not static.failed
        (made,) = static._made.values()
        with torch.inference_mode():
            made.start(prefix, made.after.clone(), made.spare.clone())
        assert (made.decoder.logits[:, 0] - next_logits(plain, prefix, QUESTIONS)).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(300, 200), (112, 112)])
def test_crops(size):
    model = next_models.native(8)
    images, sizes = next_models.inputs(model, size, size)
    ids = torch.tensor([[5, 6, -200, 7, 9], [8, 6, -200, 3, 1]])
    for method, tokens in (("visiondrop", 40), ("none", None)):
        with visiondrop.apply(model, method, tokens):
            expected = greedy(model, ids, images, 6, image_sizes=sizes)
            static = generator(model)
            assert torch.equal(static.generate(ids, images, sizes, max_new_tokens=6), expected)
            assert static.calls["static"] == 1


def test_videos():
    model = video_models.native()
    ids = torch.tensor([video_models.prompt(4, "video", 6)] * 2)
    videos = [video_models.video(0), video_models.video(1)]
    with visiondrop.apply(model, tokens=64):
        static = generator(model)
        assert torch.equal(static.generate(ids, videos, max_new_tokens=4), greedy(model, ids, videos, 4))


def test_golden_weights_in_32_layers():
    model = golden.native()
    ids = torch.tensor([golden.prompt(0)])
    with visiondrop.apply(model, tokens=64):
        static = generator(model)
        found = static.generate(ids, golden.pixels(0), max_new_tokens=6)
        assert torch.equal(found, greedy(model, ids, golden.pixels(0), 6))


def test_decoding_uses_the_same_buffers_every_step(plain):
    ids, pixels = inputs(plain, 1)
    with visiondrop.apply(plain, tokens=64), torch.inference_mode():
        prompts = Prompts.read(plain, ids, None, pixels, None)
        static = StaticPrompts(plain, prompts, 32, generator(plain).how)
        static.start(prompts)
        before = [k.data_ptr() for k in static.decoder.cache.keys]
        for number in range(1, 6):
            static.decode(number)
        assert [k.data_ptr() for k in static.decoder.cache.keys] == before
        counts = visiondrop.plan("visiondrop", 64, layers=8).tokens_per_layer()
        assert static.decoder.cache.lengths == [n + 4 + 8 for n in counts]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA card")
@pytest.mark.parametrize("method, options", METHODS)
def test_graphs_are_captured(plain, method, options):
    ids, pixels = inputs(plain, 1)
    with visiondrop.apply(plain, method, **options):
        static = generator(plain)
        static.generate(ids, pixels, max_new_tokens=4)
        (made,) = static._made.values()
        assert made._first.captured and not static.failed, static.notice.sentences


def test_a_failed_capture_runs_eagerly(monkeypatch):
    calls, notice = [], replay.Notice()

    class Card:
        type = "cuda"

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "Stream", refuse)
    made = replay.Replay(lambda: calls.append(1), Card(), notice=notice)
    made()
    made()
    assert not made.captured and len(calls) == 2 and "could not be captured" in notice.sentences[0]
