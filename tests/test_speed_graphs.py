"""Static shapes: the same greedy answers as `generate`, on the CPU without capture, on a card with it."""

import pytest
import torch

import visiondrop
from eval.efficiency.models import build, pictures
from llava.model.graphs import GraphedGenerator, Replay

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return build(TINY, vocab=64, attention=request.param, device=DEVICE)


def inputs(model, rows, seed=0, before=4, after=6):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (rows, before + 1 + after), generator=draw)
    ids[:, before] = -200
    return ids.to(model.device), pictures(model, rows, seed)


@pytest.mark.parametrize("method, options", [
    ("none", {}),
    ("visiondrop", {"tokens": 64}),
    ("visiondrop", {"tokens": 200, "encoder": "off"}),
    ("visiondrop", {"tokens": 64, "score": "text"}),
    ("fastv", {"tokens": 200}),
])  # fmt: skip
def test_same_answers_as_generate(model, method, options):
    with visiondrop.apply(model, method, **options):
        generator = GraphedGenerator(model, max_new_tokens=12)
        for seed in (0, 1):  # the second prompt reuses what was made for the first
            ids, pixels = inputs(model, 2, seed)
            expected = model.generate(ids, images=pixels, do_sample=False, max_new_tokens=12)
            assert torch.equal(generator.generate(ids, pixels), expected) and generator.reason == ""
        assert len(generator._made) == 1


def test_ends(model):
    ids, pixels = inputs(model, 3)
    with visiondrop.apply(model, tokens=64):
        free = model.generate(ids, images=pixels, do_sample=False, max_new_tokens=12)
        config = model.generation_config
        config.eos_token_id = [int(free[0, 2]), int(free[1, 5])]
        try:
            expected = model.generate(ids, images=pixels, do_sample=False, max_new_tokens=12)
            assert torch.equal(GraphedGenerator(model, 12).generate(ids, pixels), expected)
            assert expected.shape[1] < 12 or (expected == config.pad_token_id).any()
        finally:
            config.eos_token_id = None


def test_what_cannot_be_static_goes_through_generate(model):
    ids, pixels = inputs(model, 2)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with visiondrop.apply(model, tokens=64) as handle:
        generator = GraphedGenerator(model, max_new_tokens=4)
        expected = model.generate(ids, images=pixels, attention_mask=mask, do_sample=False, max_new_tokens=4)
        assert torch.equal(generator.generate(ids, pixels, attention_mask=mask), expected)
        assert generator.reason == "padding"
        generator.generate(ids, pixels, max_new_tokens=6)
        assert "buffers" in generator.reason
        assert handle.active


def test_another_method_gets_graphs_of_its_own(model):
    ids, pixels = inputs(model, 1)
    generator = GraphedGenerator(model, max_new_tokens=4)
    for tokens in (32, 64):
        with visiondrop.apply(model, tokens=tokens):
            expected = model.generate(ids, images=pixels, do_sample=False, max_new_tokens=4)
            assert torch.equal(generator.generate(ids, pixels), expected)
    assert len(generator._made) == 2


def test_decoding_allocates_the_same_shapes_every_step(model):
    ids, pixels = inputs(model, 1)
    with visiondrop.apply(model, tokens=64):
        static = GraphedGenerator(model, 6).static(ids[:, :4], ids[:, 5:], pixels)
        static.start(ids[:, :4], ids[:, 5:], pixels)
        before = [k.data_ptr() for k in static.cache.keys]
        for _ in range(5):
            static.decode()
        assert [k.data_ptr() for k in static.cache.keys] == before
        assert static.cache.lengths == [n + 10 for n in visiondrop.plan("visiondrop", 64, layers=8).tokens_per_layer()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA card")
def test_graphs_are_captured(model):
    ids, pixels = inputs(model, 1)
    with visiondrop.apply(model, tokens=64):
        static = GraphedGenerator(model, 6).static(ids[:, :4], ids[:, 5:], pixels)
        assert static.prefill.captured and static.decode.captured


def test_a_failed_capture_runs_eagerly(monkeypatch):
    calls = []

    class Card:
        type = "cuda"

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "Stream", refuse)
    replay = Replay(lambda: calls.append(1) or len(calls), Card(), lambda: None)
    assert not replay.captured and replay() == 1 and replay() == 2
