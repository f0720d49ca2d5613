"""Control: patches spread evenly over the image, chosen before the LLM whatever they show, without [CLS]."""

from dataclasses import dataclass
from functools import partial

import torch

from ...ops.selection import Selection
from ...plans.grids import grids, kept_of, spread
from ...plans.plan import Kept, Plan, Stage, View
from ...plans.shape import VisualShape
from ..method import InDecoder
from ..registry import register


@register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(InDecoder):
    """`tokens` of the nominal number of visual tokens, or the same share of another number.

    A regular sub-grid where the number allows it (64: 8 x 8 of 24 x 24), else rows of nearly equal numbers.  With
    several grids each gets its share by area; where the places of the tokens are not known, every n-th of the sequence.
    """

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One stage on entry of the first layer.  None: budget out of reach."""
        self.one_way(tokens)
        keep = kept_of(tokens, shape)
        places = sub_grid(shape, keep)
        if places is None:
            return None
        return self.placed(Plan("uniform", shape, stages=(Stage(0, Kept(keep), partial(select, places=places)),)))


def sub_grid(shape: VisualShape, keep: int) -> torch.Tensor | None:
    """Slots of the unpruned sequence, ascending: [keep] long; None where there are not as many patches."""
    blocks = grids(shape)
    if blocks is None:
        return spread(1, shape.tokens, keep) if 1 <= keep <= shape.tokens else None
    total = sum(grid.rows * grid.columns for grid in blocks)
    if not 1 <= keep <= total:
        return None
    chosen, before, given = [], 0, 0
    for grid in blocks:
        before += grid.rows * grid.columns
        share = keep * before // total - given
        given += share
        chosen.append(grid.slots().flatten()[spread(grid.rows, grid.columns, share)])
    return torch.cat(chosen)


def select(view: View, kept: Kept, places: torch.Tensor) -> Selection:
    """The slots `places` [K = kept.dominant], the same in every image; states unchanged."""
    hidden = view.hidden
    return Selection(index=places.to(hidden.device).expand(len(hidden), -1))
