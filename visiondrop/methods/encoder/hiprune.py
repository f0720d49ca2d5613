"""HiPrune (2025): after the encoder, patches attended to in a middle tower layer with their neighbours, then in a deep one.

Source: `Danielement321/HiPrune`, commit 6e83a12 (docs/methods/hiprune.md): the attention that a patch receives from all rows of
an object layer chooses anchors, whose four neighbours on the grid are kept with them; what is left of T goes to the patches
that receive most in the feature layer.  Tower features unchanged, no merging, no [CLS], raster order; no [CLS] is needed.
Beyond the original: float32 in every dtype, equal values go to the smallest patch, and a budget that anchors and neighbours
alone may exceed is refused.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import VisionDropError
from ...ops.selection import Selection, ranked
from ...plans.grids import PACKED
from ...plans.plan import Kept, Plan, View, raster_patches
from ...plans.schedule import per_unit
from ...plans.shape import VisualShape
from ..method import Method
from ..options import option
from ..registry import register

ALPHA = 0.1
OBJECT_LAYER, REFERENCE_TOWER = 9, 24  # the authors' layer of CLIP-L, counted from 1
AROUND = 5  # an anchor and its four neighbours


@register("hiprune")
@dataclass(frozen=True, kw_only=True)
class HiPrune(Method):
    """Every unit (crop, frame) sends T patches to the decoder, T = budget / number of units."""

    alpha: float = option(ALPHA, "share of T that anchors and their neighbours may take")
    object_layer: int | None = option(
        None, "tower layer, counted from 1, that chooses anchors; default 9 of 24, scaled to its depth", low=1
    )

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One encoder stage.  None: budget out of reach."""
        self.one_way(tokens)
        columns, last = columns_of(shape), shape.feature_layer + 1
        layer = self.object_layer or max(1, round(OBJECT_LAYER * shape.tower_layers / REFERENCE_TOWER))
        if layer > last:
            raise VisionDropError(
                f"object_layer={layer}: allowed are 1 … {last}, the layers of this tower whose output is read or comes before"
            )
        count = per_unit(tokens, shape)
        anchors = 0 if count is None else round(count * self.alpha / AROUND)  # halves to even
        if count is None or AROUND * anchors > count:
            return None
        pick = partial(select, anchors=anchors, columns=columns, layers=(layer - 1, last - 1))
        return raster_patches("hiprune", count, shape, pick, probes=(layer - 1, last - 1))


def columns_of(shape: VisualShape) -> int:
    """Patches (tokens, where a model takes pictures of any size) in a row of the grid."""
    if shape.grid is not None:
        return shape.grid[2]
    side = math.isqrt(shape.patches)
    if side * side != shape.patches or shape.source == PACKED:
        raise VisionDropError(
            f"method 'hiprune' needs a grid of patches; this tower has {shape.patches}, which are no square"
        )
    return side


def select(view: View, kept: Kept, anchors: int, columns: int, layers: tuple[int, int]) -> Selection:
    """`kept.dominant` patches in raster order, without [CLS]; `layers`: the object layer and the deep one, 0-based."""
    early, deep = (view.at(layer).received() for layer in layers)  # [U, n] each
    chosen = hierarchy(early, deep, anchors, columns, kept.dominant)
    return Selection(index=chosen + int(view.cls), scores=deep)


def hierarchy(early: Tensor, deep: Tensor, anchors: int, columns: int, count: int) -> Tensor:
    """Anchors by `early` with their neighbours, then the best by `deep`, until there are `count`.

    Neighbours are flat: left of a row's first patch is the last of the row above; beyond the grid, the first or last patch.

    Args:
        early, deep: [U, n] float32; columns: of the grid; count: 5 * anchors … n.

    Returns:
        [U, count] long, ascending.
    """
    shift = torch.tensor([0, -1, 1, -columns, columns], device=early.device)
    around = (ranked(early, anchors)[:, :, None] + shift).clamp(0, deep.shape[1] - 1).flatten(1)
    protected = torch.zeros_like(deep, dtype=torch.bool).scatter(1, around, True)
    return ranked(deep.masked_fill(protected, float("inf")), count).sort(dim=1).values
