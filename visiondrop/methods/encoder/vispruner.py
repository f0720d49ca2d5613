"""VisPruner (Zhang et al., ICCV 2025): after the encoder, patches [CLS] attends to plus patches unlike one another.

Source: `Theia-4869/VisPruner` (docs/methods/vispruner.md): of T tokens per unit int(T * important_ratio) are the most
attended; the others are what is left of the rest after near-duplicates are removed, eight at a time.  No merging, no
[CLS], raster order.  Beyond the original, which crashes there: a pool of odd length puts its extra member on the even
side, and a pass removes no more members than that side has.  Similarities are float32 in every dtype (the original's
follow the tower's): the diverse half is chaotic at float precision, as one flipped order among near-equal similarities
changes every later even-odd split.  `bits` rounds what is compared, so that another runtime's last bits seldom matter.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...ops.selection import Selection
from ...plans.plan import Kept, Plan, View, raster_patches
from ...plans.schedule import per_unit
from ...plans.shape import VisualShape
from ..early import CutsEarly
from ..options import option
from ..registry import register

PER_PASS = 8
IMPORTANT_RATIO = 0.5


@register("vispruner")
@dataclass(frozen=True, kw_only=True)
class VisPruner(CutsEarly):
    """Every unit (crop, frame) sends T patches to the decoder, T = budget / number of units."""

    important_ratio: float = option(
        IMPORTANT_RATIO, "share of T chosen by attention; the rest by diversity", zero=False
    )

    bits: int | None = option(
        None,
        "attention and similarities are compared to so many significant bits, equals by rank; default: as published, all of float32",
        low=2,
        high=23,
    )

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One encoder stage.  None: budget out of reach."""
        self.one_way(tokens)
        count = per_unit(tokens, shape)
        if count is None:
            return None
        pick = partial(select, important=int(count * self.important_ratio), bits=self.bits)
        return self.cut_early(raster_patches("vispruner", count, shape, pick))


def select(view: View, kept: Kept, important: int, bits: int | None = None) -> Selection:
    """`important` patches by attention and `kept.dominant - important` diverse ones, in raster order, without [CLS]."""
    scores, first = view.score(), int(view.cls)  # [U, n]
    order = rounded(scores, bits).argsort(dim=1, descending=True, stable=True)
    chosen = order[:, :important]
    if kept.dominant > important:
        rest = diverse(view.hidden[:, first:], order[:, important:], kept.dominant - important, bits)
        chosen = torch.cat([chosen, rest], dim=1)
    return Selection(index=chosen.sort(dim=1).values + first, scores=scores)


def diverse(features: Tensor, pool: Tensor, count: int, bits: int | None = None) -> Tensor:
    """Remove near-duplicates from a pool of patches until `count` are left.

    Each pass splits the pool into even and odd places and drops from the even side the (up to) eight patches most
    similar to any on the odd side; the even survivors, by falling similarity, then stand before the odd side.

    Args:
        features: [U, n, D] patch states.
        pool: [U, m] long, patch ids in order of falling attention; count: 1 … m; bits: of the similarities, None = all.

    Returns:
        [U, count] long patch ids, in the pool's last order.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    similarity = rounded(unit @ unit.transpose(1, 2), bits)  # [U, n, n]
    unit_of = torch.arange(len(pool), device=pool.device)[:, None, None]
    while pool.shape[1] > count:
        even, odd = pool[:, ::2], pool[:, 1::2]
        nearest = similarity[unit_of, even[:, :, None], odd[:, None]].amax(dim=2)  # [U, even]
        removed = min(PER_PASS, pool.shape[1] - count, even.shape[1])
        falling = nearest.argsort(dim=1, descending=True, stable=True)
        pool = torch.cat([even.gather(1, falling[:, removed:]), odd], dim=1)
    return pool


def rounded(values: Tensor, bits: int | None) -> Tensor:
    """Values to `bits` significant bits, halves to even; None = as they are."""
    if bits is None:
        return values
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2**bits).round(), exponent - bits)
