"""PruMerge+ (ICCV 2025): after the encoder, attended patches and evenly spaced ones, each with its nearest added.

Source: `42Shawn/LLaVA-PruMerge`, commit 1ca8b2b, `token_prune_merge_advanced_plus` (docs/methods/prumerge.md): [CLS] attention and
keys of the tower's last layer, all heads as one; a quarter of the tokens are the most attended, the others stand at an even
step; to each the 32 patches of nearest keys are added, weighted by their attention, and one more token sums all the rest.
Beyond the original, whose number of tokens depends on the picture: the budget fixes it.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import VisionDropError
from ...ops.selection import Selection, complement, gather_rows
from ...plans.plan import EncoderStage, Kept, Plan, View
from ...plans.schedule import per_unit
from ...plans.shape import VisualShape
from ..method import Method
from ..options import option
from ..registry import register

NEAR = 32  # patches added to each kept one
PER_ATTENDED = 4  # tokens to one chosen by attention


@register("prumerge")
@dataclass(frozen=True, kw_only=True)
class PruMerge(Method):
    """Every unit (crop, frame) sends T - 1 merged patches and the sum of the rest, T = budget / number of units."""

    near: int = option(NEAR, "patches added to each kept one", low=0, high=10**6)

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One encoder stage.  None: budget out of reach."""
        self.one_way(tokens)
        count = per_unit(tokens, shape)
        if count is None or not PER_ATTENDED <= count < shape.patches:
            return None
        layer = shape.tower_layers - 1
        if shape.feature_layer not in (layer - 1, layer):
            raise VisionDropError(
                f"method 'prumerge' reads the tower's last layer; features are read from layer {shape.feature_layer} of {layer}"
            )
        pick = partial(select, layer=layer, near=self.near)
        return Plan("prumerge", shape, encoder=EncoderStage(Kept(0, count), pick, scoring="cls", probes=(layer,)))


def select(view: View, kept: Kept, layer: int, near: int) -> Selection:
    """`kept.contextual` rows: attended patches, spaced ones, the sum of the rest."""
    first, probe = int(view.cls), view.at(layer)
    query, key = (x.transpose(1, 2).flatten(2).float() for x in (probe.query, probe.key))  # [U, R, D]
    rows = query[:, :1] if first else query
    logits = rows @ key.transpose(1, 2) * key.shape[2] ** -0.5
    scores = logits.softmax(dim=-1).mean(dim=1)[:, first:]
    chosen = spaced(scores, kept.contextual - 1)
    value, rest = merged(view.hidden[:, first:].float(), key[:, first:], scores, chosen, near)
    most = rest.gather(1, scores.gather(1, rest).argmax(dim=1, keepdim=True))  # gives the sum its id
    index = torch.cat([chosen, most], dim=1)
    gone = complement(index, scores.shape[1])
    fate = torch.full_like(gone, index.shape[1] - 1)
    return Selection(index + first, value.to(view.hidden.dtype), 0, gone + first, fate, scores)


def spaced(scores: Tensor, count: int) -> Tensor:
    """[U, count] long: the best, by falling score, then every s-th patch that is not among them, then the next best.

    A quarter of the tokens are the best, and s is a third of the patches to each of those, as in the original.  Where a budget
    has no room for all of every s-th, which the original never meets, they are thinned evenly from top to bottom.
    """
    n, best = scores.shape[1], (count + 1) // PER_ATTENDED
    step = max(1, n // best // 3)
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    place = torch.arange(n, device=scores.device)
    regular = (place % step == 0) & (place < n - 1)
    regular = regular & (rank >= best)
    at, all_of_them = regular.cumsum(dim=1) - 1, regular.sum(dim=1, keepdim=True).clamp(min=1)
    room = count - best
    regular &= (all_of_them <= room) | (at * room % all_of_them < room)
    key = torch.where(regular, n + place, 2 * n + rank)
    return torch.where(rank < best, rank, key).argsort(dim=1, stable=True)[:, :count]


def merged(states: Tensor, keys: Tensor, scores: Tensor, chosen: Tensor, near: int) -> tuple[Tensor, Tensor]:
    """Each chosen state plus its nearest ones times their scores, and the sum of all that is not chosen times theirs.

    Args:
        states, keys: [U, n, D] float32; scores: [U, n]; chosen: [U, K] long.

    Returns:
        ([U, K + 1, D]; [U, n - K] long what is not chosen, ascending).
    """
    unit = torch.nn.functional.normalize(keys, dim=-1)
    similarity = (gather_rows(unit, chosen) @ unit.transpose(1, 2)).scatter(2, chosen.unsqueeze(2), float("-inf"))
    nearest = similarity.argsort(dim=2, descending=True, stable=True)[:, :, : min(near, states.shape[1] - 1)]
    weights = scores.unsqueeze(1).expand_as(similarity).gather(2, nearest)
    member = torch.zeros_like(similarity).scatter(2, nearest, weights)  # [U, K, n]
    rest = complement(chosen, states.shape[1])
    left = torch.zeros_like(scores).scatter(1, rest, scores.gather(1, rest)).unsqueeze(1)
    return torch.cat([gather_rows(states, chosen) + member @ states, left @ states], dim=1), rest
