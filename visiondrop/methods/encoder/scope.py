"""SCOPE (NeurIPS 2025): after the encoder, patches that cover the picture best, weighted by [CLS] attention.

Source: `kinredon/SCOPE`, commit 6bf7306 (docs/methods/scope.md): greedily, the patch with the largest
(growth of coverage) x (attention of [CLS])^alpha, where the coverage of a patch is its largest cosine to a chosen one.  Tower
features unchanged, no merging, no [CLS], raster order.  Beyond the original: float32 in every dtype, and equal values go to
the smallest patch.
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

ALPHA = 1.0


@register("scope")
@dataclass(frozen=True, kw_only=True)
class Scope(CutsEarly):
    """Every unit (crop, frame) sends T patches to the decoder, T = budget / number of units."""

    alpha: float = option(ALPHA, "exponent of the attention; the authors' runs have 1", zero=False)

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One encoder stage.  None: budget out of reach."""
        self.one_way(tokens)
        count = per_unit(tokens, shape)
        if count is None:
            return None
        return self.cut_early(raster_patches("scope", count, shape, partial(select, alpha=self.alpha)))


def select(view: View, kept: Kept, alpha: float) -> Selection:
    """`kept.dominant` patches of the greedy choice, in raster order, without [CLS]."""
    scores, first = view.score(), int(view.cls)  # [U, n]
    chosen = covering(view.hidden[:, first:], scores**alpha, kept.dominant)
    return Selection(index=chosen.sort(dim=1).values + first, scores=scores)


def covering(features: Tensor, weight: Tensor, count: int) -> Tensor:
    """Greedy facility location, each gain times the candidate's weight.

    Args:
        features: [U, n, D]; weight: [U, n] float32 >= 0; count: 1 … n.

    Returns:
        [U, count] long patches in the order in which they are chosen; a smaller count chooses the first of them.
    """
    unit = features.float()
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    similarity = unit @ unit.transpose(1, 2)  # [U, n, n], symmetric
    covered = torch.zeros_like(weight).unsqueeze(1)  # [U, 1, n]; what is unlike everything chosen counts from 0
    taken, chosen = torch.zeros_like(weight, dtype=torch.bool), []
    for _ in range(count):
        gain = (similarity - covered).clamp_(min=0).sum(dim=2)  # rows are candidates, as good as columns
        best = (gain * weight).masked_fill(taken, float("-inf")).argmax(dim=1, keepdim=True)  # [U, 1]
        chosen.append(best)
        taken = taken.scatter(1, best, True)
        row = similarity.gather(1, best.unsqueeze(2).expand(-1, -1, similarity.shape[2]))
        covered = torch.maximum(covered, row)
    return torch.cat(chosen, dim=1)
