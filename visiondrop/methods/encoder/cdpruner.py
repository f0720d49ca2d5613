"""CDPruner (NeurIPS 2025): after the projector, patches unlike one another, the more so the less CLIP finds the question in them.

Source: `Theia-4869/CDPruner`, commit 9541616 (docs/methods/cdpruner.md): greedy choice of a determinantal point process over the
projected patches, each weighted by its relevance, the *negative* similarity of CLIP's image and text embeddings (the authors
report it so).  Projected states unchanged, no merging, no [CLS], raster order.  Beyond the original: once the picks span all
that the patches span, the rest is taken in order of the weight that is left, the smallest patch first, where the original's
roots of rounding errors become NaN; patches of equal relevance all count 1; everything is float32 in every dtype; and relevance
is scaled picture by picture, where several pictures of one batch do not count for one another.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import VisionDropError
from ...ops.selection import Selection
from ...plans.flops import question_guided
from ...plans.plan import EncoderStage, Kept, Plan, Question, View
from ...plans.schedule import per_unit
from ...plans.shape import VisualShape
from ..method import Method
from ..options import option
from ..registry import register

LEAST = 1e-6  # relevance of the patch that has least
RANK = 1e-7  # share of the first pick's weight below which a weight is a rounding error


@register("cdpruner")
@dataclass(frozen=True, kw_only=True)
class CDPruner(Method):
    """Every unit (crop, frame) sends T patches to the decoder, T = budget / number of units."""

    clip: Any = option(
        None, "CLIP with its text half: folder, hub id or CLIPModel; default: the tower's own", compare=False
    )

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One encoder stage after the projector.  None: budget out of reach."""
        self.one_way(tokens)
        if not shape.cls:
            raise VisionDropError(
                "method 'cdpruner' compares patches with CLIP's text half, and this tower is not CLIP's"
            )
        count = per_unit(tokens, shape)
        if count is None:
            return None
        if count == shape.patches and count * shape.units == shape.tokens:
            return Plan("cdpruner", shape)
        stage = EncoderStage(Kept(count), partial(select, units=shape.units), order="raster", projected=True)
        return Plan(
            "cdpruner",
            shape,
            encoder=stage,
            text_guided=True,
            question=Question(self.clip),
            extra_flops=partial(question_guided, shape=shape, kept=count),
        )


def select(view: View, kept: Kept, units: int) -> Selection:
    """`kept.dominant` patches in raster order, without [CLS]; `units`: of every picture."""
    weight = relevance(view.joint, view.text, units)  # [U, n]
    picked = diverse(view.projected, weight, kept.dominant)
    return Selection(index=picked.sort(dim=1).values + int(view.cls), scores=weight)


def relevance(joint: Tensor, text: Tensor, units: int) -> Tensor:
    """How unlike the question a patch is, from just above 0 to 1 within each picture.

    Args:
        joint: [I * units, n, J] patches in CLIP's joint space; text: [I * units, J] the question's, see `ClipText.embed`.

    Returns:
        [I * units, n] float32.
    """
    unit = joint / joint.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    unlike = -(unit @ text[:, :, None]).squeeze(2).view(-1, units * joint.shape[1])
    low, high = unlike.amin(dim=1, keepdim=True), unlike.amax(dim=1, keepdim=True)
    spread = high - low
    scaled = (unlike - low + LEAST) / spread.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(spread > 0, scaled, 1).view(len(joint), -1)


def diverse(states: Tensor, weight: Tensor, count: int) -> Tensor:
    """Greedy maximum of the determinant of the kernel weight_i cos(i, j) weight_j, by pivoted Cholesky steps.

    Args:
        states: [U, n, D]; weight: [U, n] float32; count: 1 … n.

    Returns:
        [U, count] long patches in the order in which they are picked; a smaller count picks the first of them.
    """
    unit = states.float()
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    kernel = weight[:, :, None] * (unit @ unit.transpose(1, 2)) * weight[:, None, :]
    units, patches = weight.shape
    at = torch.arange(units, device=weight.device)
    factors = kernel.new_zeros(units, count, patches)
    gain, picked = kernel.diagonal(dim1=1, dim2=2).clone(), []
    least = RANK * gain.amax(dim=1)
    for turn in range(count):
        best = gain.argmax(dim=1)  # [U]
        picked.append(best)
        before = factors[:, :turn]  # [U, turn, n]
        row = kernel[at, best] - (before[at, :, best].unsqueeze(1) @ before).squeeze(1)
        top = gain[at, best]
        # Below, the picks span everything: what is left of a weight is rounding, and no row is added.
        row = torch.where(
            (top > least)[:, None], row / top.clamp(min=torch.finfo(torch.float32).tiny).sqrt()[:, None], 0
        )
        factors[:, turn] = row
        gain = (gain - row * row).scatter(1, best[:, None], float("-inf"))
    return torch.stack(picked, dim=1)
