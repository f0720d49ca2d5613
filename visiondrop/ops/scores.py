"""Attention scores without attention maps: only the rows that are asked for, in chunks, softmax in float32.

Nothing here reads or changes the attention backend; queries and keys are recomputed from the layer's input.
"""

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from . import fused

CUDA_CELLS = 1 << 26  # logits held at once on a card, whose host should launch few kernels: 256 MiB
TRIANGLE = 256  # side of the causal mask that is kept
CPU_ROWS = 64  # of one chunk: the map stays in the processor's cache, and little above the diagonal is computed
SCORE_MASKS = ("causal", "queries", "bidirectional")


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in LLaMA's half-split layout: x [I, H, R, E], cos and sin [I or 1, R, E]."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def project(layer: Any, hidden: Tensor, rope: tuple[Tensor, Tensor], what: str, own_rotary: bool = False) -> Tensor:
    """Rotated queries or keys of one decoder layer for the given rows.

    Args:
        layer: decoder layer with `input_layernorm` and `self_attn.{q_proj,k_proj}` (and `q_norm`/`k_norm`, if any).
        hidden: [I, R, D] residual-stream states.
        rope: (cos, sin), each [I or 1, R, E].
        what: "q" or "k"; own_rotary: see `finish`.

    Returns:
        [I, H, R, E]; H is the number of query or key/value heads.
    """
    flat = getattr(layer.self_attn, f"{what}_proj")(layer.input_layernorm(hidden))
    return finish(layer.self_attn, flat, rope, what, own_rotary)


def _heads(attention: Any, flat: Tensor, what: str) -> Tensor:
    """[I, R, H * E] -> [I, R, H, E], normed where the model does so."""
    out = flat.view(*flat.shape[:2], -1, attention.head_dim)
    norm = getattr(attention, f"{what}_norm", None)
    return out if norm is None else norm(out)


def finish(attention: Any, flat: Tensor, rope: tuple[Tensor, Tensor], what: str, own_rotary: bool = False) -> Tensor:
    """Output of q_proj or k_proj [I, R, H * E] -> heads, normed where the model does so, rotated: [I, H, R, E].

    `own_rotary`: by the function of the attention's own module (GLM turns neighbours, and only some of the channels).
    """
    out = _heads(attention, flat, what)
    if own_rotary:
        out = out.transpose(1, 2)
        return sys.modules[type(attention).__module__].apply_rotary_pos_emb(out, out, *rope)[0]
    return rotate(out.transpose(1, 2), *rope)


def finish_both(
    attention: Any, keys: Tensor, queries: Tensor, rope: tuple[Tensor, Tensor], own_rotary: bool = False
) -> tuple[Tensor, Tensor]:
    """`finish` for keys [I, R, Hkv * E] and for the queries of the last S rows, [I, S, H * E].

    Returns:
        ([I, Hkv, R, E], [I, H, S, E]), heads side by side in memory: else every chunk of a batch copies its keys to bring
        images and heads together.
    """
    before = keys.shape[1] - queries.shape[1]
    tail = (rope[0][:, before:], rope[1][:, before:])
    if own_rotary or keys.shape[2] != queries.shape[2]:
        key, query = finish(attention, keys, rope, "k", own_rotary), finish(attention, queries, tail, "q", own_rotary)
        return key.contiguous(), query.contiguous()
    # As many key heads as query heads: both are rotated at once, one after the other.
    key, query = _heads(attention, keys, "k"), _heads(attention, queries, "q")
    both = torch.cat([key.transpose(1, 2), query.transpose(1, 2)], dim=2)
    cos, sin = torch.cat([rope[0], tail[0], rope[1], tail[1]], dim=1).chunk(2, dim=1)
    both = rotate(both, cos, sin)
    return both[:, :, : keys.shape[1]], both[:, :, keys.shape[1] :]


@functools.cache
def _triangle(device: torch.device) -> Tensor:
    """[TRIANGLE, TRIANGLE] bool, True above the diagonal; made once, as graphs that were captured read it for ever."""
    with torch.inference_mode(False):
        return torch.ones(TRIANGLE, TRIANGLE, dtype=torch.bool, device=device).triu_(1)


def _future(size: int, device: torch.device) -> Tensor:
    """[size, size] bool, True above the diagonal."""
    if size > TRIANGLE:
        return torch.ones(size, size, dtype=torch.bool, device=device).triu_(1)
    return _triangle(device)[:size, :size]


def _logits(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """[I, H, R, E] x [I, Hkv, S, E] -> [I, H, R, S] float32; query heads share key heads in groups."""
    images, heads, rows, width = query.shape
    groups = heads // key.shape[1]
    grouped = query.reshape(images, key.shape[1], groups * rows, width)
    # The scale goes to the small side: one pass over [R, E] instead of one over the map.
    return ((grouped * scale) @ key.transpose(2, 3)).view(images, heads, rows, -1).float()


def attention_rows(query: Tensor, key: Tensor, scale: float, visible: Tensor | None, chunk: int = 256) -> Tensor:
    """Softmaxed attention of some query rows, mean over heads.

    Args:
        query: [I, H, R, E]; key: [I, Hkv, S, E].
        visible: [I, R, S] bool, True where the row may look; None = everywhere.

    Returns:
        [I, R, S] float32; every row sums to 1.
    """
    out = []
    for start in range(0, query.shape[2], chunk):
        rows = slice(start, start + chunk)
        logits = _logits(query[:, :, rows], key, scale)
        if visible is not None:
            logits.masked_fill_(~visible[:, None, rows], float("-inf"))
        out.append(logits.softmax(dim=-1).mean(dim=1))
    return torch.cat(out, dim=1) if len(out) > 1 else out[0]


def received(
    query: Tensor,
    key: Tensor,
    scale: float,
    hidden_keys: Tensor | None,
    mask: str = "causal",
    chunk: int = 256,
    fuse: bool = False,
) -> Tensor:
    """Attention that visual tokens receive from visual queries (paper Eq. 3-4, with the code's causal mask).

    The softmax runs over everything a visual token sees, i.e. what stands before the image too; that share is cut
    off without renormalising.

    Args:
        query: [I, H, n, E] queries of the visual tokens.
        key: [I, Hkv, P + n, E] keys of the P tokens before the image, then of the image.
        hidden_keys: [I, P + n] bool, True for keys that are padding; None = none.
        mask: "causal" as the official code; "queries": causal, each key's sum divided by the number of visual
            queries that see it instead of by n; "bidirectional": no mask among the visual tokens.
        chunk: most query rows handled at once over all images; no tensor exceeds heads x chunk x (P + n) elements, on a
            card the larger of it and `CUDA_CELLS`.
        fuse: compute without any map where `fused.usable`.

    Returns:
        [I, n] float32.
    """
    if fuse and fused.usable(query):
        return fused.received(query, key, scale, hidden_keys, mask)
    images, heads, count, _ = query.shape
    before = key.shape[2] - count
    rows = max(1, min(chunk // images, CPU_ROWS))
    if query.device.type != "cpu":
        rows = max(1, chunk // images, CUDA_CELLS // (images * heads * key.shape[2]))
    total: Any = None
    if rows < count:
        total = torch.zeros(images, count, dtype=torch.float32, device=query.device)
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        seen = key.shape[2] if mask == "bidirectional" else before + stop
        logits = _logits(query[:, :, start:stop], key[:, :, :seen], scale)
        if mask != "bidirectional":
            size = stop - start
            logits[..., seen - size :].masked_fill_(_future(size, query.device), float("-inf"))
        if hidden_keys is not None:
            logits.masked_fill_(hidden_keys[:, None, None, :seen], float("-inf"))
        weights = logits.softmax(dim=-1)
        if total is None and mask != "queries":
            return weights.mean(dim=(1, 2))[:, before:]
        weights = weights.sum(dim=2).mean(dim=1)[:, before:]
        if total is None:
            total = weights
        else:
            total[:, : seen - before] += weights
    if mask == "queries":
        return total / torch.arange(count, 0, -1, device=total.device)
    return total / count
