"""DivPrune (Alvar et al., CVPR 2025): before the LLM, the visual tokens that are farthest from one another.

Source: `vbdi/divprune`, commit 799e2d9 (docs/methods/divprune.md): a greedy max-min choice by cosine distance over the
whole visual sequence that enters the LLM, newlines of LLaVA-NeXT included; survivors keep their order and are numbered
anew.  It reads neither attention nor the question.  Beyond the original, which can pick a token twice: picked tokens are
out, equal distances go to the smallest slot, and everything is float32 in every dtype (in float16 the distances stand on
a grid of a thousandth, so that most choices are ties of the device).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.selection import Selection, gather_rows
from ...plans.plan import Kept, Plan, Stage, View
from ...plans.shape import VisualShape
from ..method import InDecoder
from ..options import option
from ..registry import register

CELLS = 1 << 22  # most similarities of a block of rows held at once


@register("divprune")
@dataclass(frozen=True, kw_only=True)
class DivPrune(InDecoder):
    """round(ratio * N) of N visual tokens, halves to even; the ratio is the budget's share of the nominal number."""

    ratio: float | None = option(
        None, "share of the visual tokens kept, instead of a budget (published: 0.098)", zero=False, amount=True
    )

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One stage on entry of the first layer.  None: budget out of reach."""
        self.one_way(tokens)
        keep = round((tokens / shape.nominal if self.ratio is None else self.ratio) * shape.tokens)
        if not 1 <= keep <= shape.tokens:
            return None
        return self.placed(Plan("divprune", shape, stages=(Stage(0, Kept(keep), select),)))


def select(view: View, kept: Kept) -> Selection:
    """The `kept.dominant` tokens of the greedy choice, in sequence order; states unchanged."""
    return Selection(index=farthest(view.hidden, kept.dominant).sort(dim=1).values)


def farthest(states: Tensor, count: int) -> Tensor:
    """Greedy max-min choice by cosine distance: first the token farthest from its nearest neighbour.

    Args:
        states: [I, n, D]; count: 1 … n.

    Returns:
        [I, count] long slots in the order in which they are picked; a smaller count picks the first of them.
    """
    unit = states.float()
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    near, picked = 1 - _second_largest(unit), []
    for turn in range(count):
        best = near.argmax(dim=1, keepdim=True)  # [I, 1]
        picked.append(best)
        away = 1 - (unit @ gather_rows(unit, best).transpose(1, 2)).squeeze(2)
        # The first pick is made by distances to neighbours, all others by those to what is picked.
        near = (torch.minimum(near, away) if turn else away).scatter(1, best, -1)
    return torch.cat(picked, dim=1)


def _second_largest(unit: Tensor) -> Tensor:
    """[I, n] cosine of every token to its nearest other one (the largest is its own), in blocks of rows."""
    images, count, _ = unit.shape
    if count == 1:
        return unit.new_zeros(images, 1)
    rows = max(1, CELLS // (images * count))
    blocks = [(block @ unit.transpose(1, 2)).topk(2, dim=2).values[..., 1] for block in unit.split(rows, dim=1)]
    return torch.cat(blocks, dim=1)
