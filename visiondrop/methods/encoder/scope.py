"""SCOPE (NeurIPS 2025): after the encoder, patches that cover the picture best, weighted by [CLS] attention.

Source: `kinredon/SCOPE`, commit 6bf7306 (docs/methods/scope.md): greedily, the patch with the largest
(growth of coverage) x (attention of [CLS])^alpha, where the coverage of a patch is its largest cosine to a chosen one.  Tower
features unchanged, no merging, no [CLS], raster order.  Beyond the original: float32 in every dtype, and equal values go to
the smallest patch.
"""

import torch
from torch import Tensor

from ...ops.selection import Selection
from ...plans.plan import EncoderStage, Plan
from ...plans.schedule import per_unit
from ...plans.shape import VisualShape
from ..options import amounts, positive
from ..registry import register

ALPHA = 1.0


@register("scope")
def plan(tokens: int | None, shape: VisualShape, *, alpha: float | str = ALPHA) -> Plan | None:
    """Every unit (crop, frame) sends T patches to the decoder, T = budget / number of units.

    Args:
        alpha: exponent of the attention; the authors' runs have 1.

    Returns:
        The plan, or None where the budget cannot be met.
    """
    amounts(tokens)
    exponent = positive("alpha", alpha)
    kept = per_unit(tokens, shape)
    if kept is None:
        return None
    if kept == shape.patches and kept * shape.units == shape.tokens:
        return Plan("scope", shape)
    return Plan("scope", shape, encoder=EncoderStage(kept, selector(exponent), kept, order="raster"))


def selector(alpha: float):
    """`view.keep` patches of the greedy choice, in raster order, without [CLS]."""

    def select(view) -> Selection:
        scores, first = view.score(), int(view.cls)  # [U, n]
        chosen = covering(view.hidden[:, first:], scores**alpha, view.keep)
        return Selection(index=chosen.sort(dim=1).values + first, scores=scores)

    return select


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
