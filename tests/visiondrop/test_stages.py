"""The prefill without waste: no host synchronisation, linear memory; same answers."""

from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import visiondrop
from eval.efficiency.memory import LiveBytes
from eval.efficiency.models import build, crops, stack_input
from visiondrop.ops import merge as merging
from visiondrop.ops.merge import merge
from visiondrop.ops.selection import top_k

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def model():
    return build(TINY, vocab=64)


def prompts(lengths, before=5):
    """Left-padded prompts of unequal length with one image each: ids, mask, pixels."""
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 60, (n,), generator=draw).tolist() for n in lengths]
    rows = [[*range(3, 3 + before), -200, *row] for row in rows]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "images": torch.randn(len(rows), 3, 336, 336, generator=draw)}


def test_an_error_leaves_no_hook_behind(model):
    inputs, layer = prompts([6]), model.model.layers[2]
    expected = model(**inputs).logits
    with visiondrop.apply(model, tokens=64):
        with mock.patch.object(layer.self_attn, "forward", side_effect=KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                model(**inputs)
    assert not layer.self_attn.q_proj._forward_hooks and not layer.self_attn.k_proj._forward_pre_hooks
    assert torch.equal(model(**inputs).logits, expected)


class NoLooking(TorchDispatchMode):
    """Refuses operators whose result depends on data or that bring a number to the host."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} looks at data"
        assert not (
            name in ("index", "index_put_") and any(x is not None and x.dtype == torch.bool for x in args[1])
        ), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"encoder": "off", "tokens": 200}], ids=["all", "no-encoder"])
def test_no_look_at_data_in_a_prefill(model, options):
    hidden, layout = stack_input(model, 2, crops(1, 8))
    with visiondrop.apply(model, **{"tokens": 64, **options}):
        made = layout()
        with NoLooking():
            model.model(inputs_embeds=hidden, layout=made, use_cache=True)


def test_memory_grows_linearly():
    thin = build("thin")
    held = []
    for units in (2, 16):
        shape = crops(units, 4)
        hidden, layout = stack_input(thin, 1, shape)
        thin.visual_shape = lambda *_, shape=shape: shape
        visiondrop.apply(thin, tokens=shape.tokens // 2, encoder="off")
        with LiveBytes([*thin.parameters(), *thin.buffers()]) as live:
            thin.model(inputs_embeds=hidden, layout=layout(), use_cache=True)
        held.append(live.peak)
        assert live.largest < 2 * shape.tokens**2, "a map of all heads"
    assert held[1] <= 1.25 * 8 * held[0], held


def test_merging_in_blocks_is_merging(monkeypatch):
    hidden, metric = torch.randn(2, 300, 16), torch.randn(2, 300, 8)
    dominant = top_k(torch.randn(2, 300), 40)
    whole = merge(hidden, metric, dominant, 20)
    monkeypatch.setattr(merging, "JOIN_CELLS", 1000)
    blocks = merge(hidden, metric, dominant, 20)
    assert torch.equal(whole.assignment, blocks.assignment) and torch.equal(whole.merged, blocks.merged)
    assert (whole.value - blocks.value).abs().max() <= 1e-5
