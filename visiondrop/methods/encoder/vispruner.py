"""VisPruner (Zhang et al., ICCV 2025): after the encoder, patches [CLS] attends to plus patches unlike one another.

Source: `Theia-4869/VisPruner` (docs/methods/vispruner.md): of T tokens per unit int(T * important_ratio) are the most
attended; the others are what is left of the rest after near-duplicates are removed, eight at a time.  No merging, no
[CLS], raster order.  Beyond the original, which crashes there: a pool of odd length puts its extra member on the even
side, and a pass removes no more members than that side has.  Similarities are float32 in every dtype (the original's
follow the tower's): the diverse half is chaotic at float precision, as one flipped order among near-equal similarities
changes every later even-odd split.
"""

import torch
from torch import Tensor

from ...ops.selection import Selection, gather_rows
from ...plans.plan import EncoderStage, Plan
from ...plans.schedule import per_unit
from ...plans.shape import VisualShape
from ..options import amounts, fraction
from ..registry import register

PER_PASS = 8
IMPORTANT_RATIO = 0.5


@register("vispruner")
def plan(tokens: int | None, shape: VisualShape, *, important_ratio: float | str = IMPORTANT_RATIO) -> Plan | None:
    """Every unit (crop, frame) sends T patches to the decoder, T = budget / number of units.

    Args:
        important_ratio: share of T chosen by attention; the rest by diversity.

    Returns:
        The plan, or None where the budget cannot be met.
    """
    amounts(tokens)
    share = fraction("important_ratio", important_ratio)
    kept = per_unit(tokens, shape)
    if kept is None:
        return None
    if kept == shape.patches and kept * shape.units == shape.tokens:
        return Plan("vispruner", shape)
    important = int(kept * share)
    return Plan("vispruner", shape, encoder=EncoderStage(kept, selector(important), kept, order="raster"))


def selector(important: int):
    """`important` patches by attention and `view.keep - important` diverse ones, in raster order, without [CLS]."""

    def select(view) -> Selection:
        scores, first = view.score(), int(view.cls)  # [U, n]
        order = scores.argsort(dim=1, descending=True, stable=True)
        chosen = order[:, :important]
        if view.keep > important:
            rest = diverse(view.hidden[:, first:], order[:, important:], view.keep - important)
            chosen = torch.cat([chosen, rest], dim=1)
        return Selection(index=chosen.sort(dim=1).values + first, scores=scores)

    return select


def diverse(features: Tensor, pool: Tensor, count: int) -> Tensor:
    """Remove near-duplicates from a pool of patches until `count` are left.

    Each pass splits the pool into even and odd places and drops from the even side the (up to) eight patches most
    similar to any on the odd side; the even survivors, by falling similarity, then stand before the odd side.

    Args:
        features: [U, n, D] patch states.
        pool: [U, m] long, patch ids in order of falling attention; count: 1 … m.

    Returns:
        [U, count] long patch ids, in the pool's last order.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    similarity = unit @ unit.transpose(1, 2)  # [U, n, n]
    while pool.shape[1] > count:
        even, odd = pool[:, ::2], pool[:, 1::2]
        rows = gather_rows(similarity, even)
        nearest = rows.gather(2, odd[:, None].expand(-1, even.shape[1], -1)).amax(dim=2)  # [U, even]
        removed = min(PER_PASS, pool.shape[1] - count, even.shape[1])
        falling = nearest.argsort(dim=1, descending=True, stable=True)
        pool = torch.cat([even.gather(1, falling[:, removed:]), odd], dim=1)
    return pool
