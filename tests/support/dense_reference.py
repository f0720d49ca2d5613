"""VisionDrop with several units, written densely from its description: whole attention maps, Python loops, no cache.

Nothing of `visiondrop` is used; of the model only its weights and transformers' own decoder layers.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_map(attention, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(output [n, D], weights [H, n, n], keys [H, n, E]) of a tower's attention on one unit [n, D]."""
    heads = attention.num_heads
    q, k, v = (
        p(states).view(len(states), heads, -1).transpose(0, 1)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return attention.out_proj((weights @ v).transpose(0, 1).flatten(1)), weights, k


def temporal(layer, frames: Tensor) -> Tensor:
    """Attention over time of one LanguageBind layer, patch by patch: [T, n, D] -> [T, n, D]."""
    frames = frames.clone()
    for t in range(len(frames)):
        frames[t] = frames[t] + layer.temporal_embedding[0, t]
    out = frames.clone()
    for patch in range(frames.shape[1]):
        through_time = layer.temporal_layer_norm1(frames[:, patch])
        out[:, patch] = frames[:, patch] + attention_map(layer.temporal_attn, through_time)[0]
    return out


def tower(clip, pixels: Tensor, last: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per unit (states [n, D], weights, keys) of the last of `last` layers; a layer may have temporal attention."""
    units = clip.pre_layrnorm(clip.embeddings(pixels))
    for layer in clip.encoder.layers[:last]:
        if hasattr(layer, "temporal_attn"):
            units = temporal(layer, units)
        results = []
        for states in units:
            out, weights, keys = attention_map(layer.self_attn, layer.layer_norm1(states))
            states = states + out
            results.append((states + layer.mlp(layer.layer_norm2(states)), weights, keys))
        units = torch.stack([r[0] for r in results])
    return results


def reduce(
    states: Tensor, score: list[float], metric: Tensor, dominant: int, contextual: int, always: list[int]
) -> tuple:
    """(new states, dominant slots, reference slots): keep the best and `always`, merge the others."""
    free = [i for i in range(len(states)) if i not in always]
    best = sorted(free, key=lambda i: (-score[i], i))[: dominant - len(always)]
    kept = sorted(always + best)
    rest = [i for i in range(len(states)) if i not in kept]
    step = max(1, len(rest) // contextual)
    references = [rest[k * step] for k in range(contextual)]
    joined: dict[int, list[int]] = {r: [] for r in references}
    for i in rest:
        if i not in references:
            likeness = [float(F.cosine_similarity(metric[i], metric[r], dim=0)) for r in references]
            joined[references[likeness.index(max(likeness))]].append(i)
    merged = [states[r] + sum(states[i] for i in joined[r]) / max(1, len(joined[r])) for r in references]
    return torch.stack([states[i] for i in kept] + merged), kept, references


def encoder_stage(clip, pixels: Tensor, last: int, dominant: int, contextual: int) -> list[tuple]:
    """`reduce` unit by unit, by [CLS] attention and mean keys."""
    out = []
    for states, weights, keys in tower(clip, pixels, last):
        score = weights[:, 0].sum(dim=0).tolist()
        out.append(reduce(states, score, keys.mean(dim=0), dominant, contextual, [0]))
    return out


def canvas_order(units: list[tuple], grid: tuple[int, int], side: int) -> Tensor:
    """Rows of several crops in the order of the official code: base, canvas, [CLS]s, contextual."""
    width, height = grid
    sequence = list(units[0][0])
    cells = {}
    for tile, (states, kept, _) in enumerate(units[1:]):
        for row, slot in enumerate(kept):
            if slot:
                y, x = divmod(slot - 1, side)
                cells[(tile // width) * side + y, (tile % width) * side + x] = states[row]
    for y in range(height * side):
        for x in range(width * side):
            if (y, x) in cells:
                sequence.append(cells[y, x])
    sequence += [states[0] for states, _, _ in units[1:]]
    for states, kept, _ in units[1:]:
        sequence += list(states[len(kept) :])
    return torch.stack(sequence)


def stage_score(layer, rotary, hidden: Tensor, start: int, count: int) -> tuple[list[float], Tensor]:
    """(attention received from visual queries, mean rotated keys) at a decoder layer's entry: hidden [1, L, D]."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)[0]
    length = len(normed)
    cos, sin = rotary(hidden, position_ids=torch.arange(length)[None])

    def heads(projection):
        x = projection(normed).view(length, -1, attention.head_dim).transpose(0, 1)
        half = attention.head_dim // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin

    q, k = heads(attention.q_proj), heads(attention.k_proj)
    logits = q @ k.transpose(1, 2) * attention.head_dim**-0.5
    logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    rows = logits.softmax(dim=-1).mean(dim=0)[start : start + count, start : start + count]
    return (rows.sum(dim=0) / count).tolist(), k.mean(dim=0)[start : start + count]


def decode(model, before: list[int], visual: Tensor, after: list[int], stages: dict[int, tuple[int, int]]) -> Tensor:
    """Logits [V] at the last position; stages: layer -> (dominant, contextual)."""
    stack = model.model
    embed = stack.embed_tokens
    hidden = torch.cat([embed(torch.tensor(before)), visual, embed(torch.tensor(after))])[None]
    start, count = len(before), len(visual)
    for i, layer in enumerate(stack.layers):
        if i in stages:
            score, metric = stage_score(layer, stack.rotary_emb, hidden, start, count)
            states, *_ = reduce(hidden[0, start : start + count], score, metric, *stages[i], [])
            hidden = torch.cat([hidden[0, :start], states, hidden[0, start + count :]])[None]
            count = len(states)
        length = hidden.shape[1]
        rope = stack.rotary_emb(hidden, position_ids=torch.arange(length)[None])
        mask = torch.zeros(length, length).masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rope)
    return model.lm_head(stack.norm(hidden))[0, -1]
