"""HoloV (NeurIPS 2025): after the projector, tokens per strip of the picture by its share of [CLS] attention.

Source: `obananas/HoloV`, commit 1d2e65e (docs/methods/holov.md): the sequence is cut into strips of equal length, each gets
tokens in proportion to its score, and gives those [CLS] attends to most, the most attended first.  What a strip is too short
for is lost: rows of zeros stand at the end instead.  Beyond the original: float32 in every dtype, equal values go to the
smallest slot, and `overflow=refill` gives the lost rows to the most attended tokens that are left.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...ops.selection import Selection, gather_rows
from ...plans.plan import EncoderStage, Kept, Plan, View
from ...plans.schedule import nearest
from ...plans.shape import VisualShape
from ..method import Method
from ..options import option
from ..registry import register

WINDOWS, AT = 16, 64  # strips at 64 of 576 tokens, as the released code has them
SHARPNESS, WEIGHT = 1000.0, 0.09  # of the attention and of the variance in a strip's score
TINY = 1e-6
OVERFLOW = ("zeros", "refill")


@register("holov")
@dataclass(frozen=True, kw_only=True)
class HoloV(Method):
    """T tokens of the whole picture, T = budget; the crops of LLaVA-NeXT and the frames of a video are one sequence."""

    windows: int | None = option(
        None, "strips; default 1024 N / (576 T) for a single picture (16 at 64), 16 for several crops or frames", low=1
    )
    overflow: str = option(
        "zeros",
        "rows that a full strip cannot give: zeros, as in the original, or the best tokens left",
        allowed=OVERFLOW,
    )

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One encoder stage.  None: budget out of reach."""
        self.one_way(tokens)
        total = sequence_length(shape)
        count = nearest(tokens * shape.scale)
        if not 1 <= count <= total:
            return None
        if count == shape.tokens:
            return Plan("holov", shape)
        windows = self.windows or (strips(total, count) if shape.units == 1 else WINDOWS)
        pick = partial(select, windows=windows, zeros=self.overflow == "zeros")
        stage = EncoderStage(Kept(count), pick, scoring="cls", projected=True, whole=True)
        return Plan("holov", shape, encoder=stage)


def sequence_length(shape: VisualShape) -> int:
    """Tokens there are to choose from: newlines, [CLS] and the padding of crops left out."""
    if shape.canvas is None:
        return shape.units * shape.patches
    return shape.patches + shape.canvas[0] * shape.canvas[1]


def strips(total: int, count: int) -> int:
    """The rule of the authors' code for Qwen2.5-VL; 5, 8, 16, 32 strips for 192, 128, 64, 32 of 576."""
    return max(1, WINDOWS * AT * total // (576 * count))


def select(view: View, kept: Kept, windows: int, zeros: bool) -> Selection:
    """`kept.dominant` tokens, strip by strip and inside a strip by falling attention; zeros, where there are any, last."""
    scores, states = view.score(), view.projected  # [I, n], [I, n, D]
    first = int(view.cls)
    index = by_strips(states, scores, windows, kept.dominant, zeros)

    def mix(x: Tensor) -> Tensor:
        return gather_rows(x, index.clamp(min=0)).masked_fill((index < 0).unsqueeze(-1), 0)

    return Selection(index + first * (index >= 0), mix(states), scores=scores, mix=mix)


def by_strips(states: Tensor, scores: Tensor, windows: int, count: int, zeros: bool) -> Tensor:
    """HoloV's choice.

    Args:
        states: [I, n, D]; scores: [I, n] float32; count: 1 … n.

    Returns:
        [I, count] long slots in the order of the sequence; -1 at the end for rows of zeros.
    """
    place = _places(scores.shape[1], windows, scores.device)  # [P, z] slots, n where a strip is shorter
    sizes = (place < scores.shape[1]).sum(dim=1)
    allocated = _allocate(_strip_scores(states, scores, place, sizes), count)  # [I, P]
    filled = torch.minimum(allocated, sizes)
    inside = _padded(scores, place, float("-inf"))  # [I, P, z]
    falling = inside.argsort(dim=2, descending=True, stable=True).argsort(dim=2)  # each token's rank in its strip
    if not zeros:
        filled = _refill(inside, falling, filled, count)
    # A strip that gives everything gives it in grid order, all others by falling attention.
    whole = (filled if not zeros else allocated) >= sizes
    order = torch.arange(place.shape[1], device=place.device)
    rank = torch.where(whole.unsqueeze(2), order, falling)
    taken = falling < filled.unsqueeze(2)
    key = torch.where(
        taken, rank + place.shape[1] * torch.arange(len(place), device=place.device)[:, None], place.numel()
    )
    slots = (
        place.expand(len(scores), -1, -1).flatten(1).gather(1, key.flatten(1).argsort(dim=1, stable=True)[:, :count])
    )
    lost = torch.arange(count, device=place.device) >= filled.sum(dim=1, keepdim=True)
    return slots.masked_fill(lost, -1)


def _places(total: int, windows: int, device: torch.device) -> Tensor:
    """[P, z] slots of every strip: consecutive runs, the first `total mod P` of them one longer; `total` = none."""
    windows = min(windows, total)
    short, longer = divmod(total, windows)
    strip = torch.arange(windows, device=device)[:, None]
    start = strip * short + strip.clamp(max=longer)
    inside = torch.arange(short + (longer > 0), device=device)
    return torch.where(inside < short + (strip < longer).long(), start + inside, total)


def _padded(scores: Tensor, place: Tensor, fill: float) -> Tensor:
    """[I, P, z] scores by strip, `fill` where a strip is shorter."""
    more = torch.nn.functional.pad(scores, (0, 1), value=fill)
    return more[:, place.flatten()].view(len(scores), *place.shape)


def _strip_scores(states: Tensor, scores: Tensor, place: Tensor, sizes: Tensor) -> Tensor:
    """[I, P] float32: mean attention and variance of cosines; the latter cancels but for 1e-6 (docs/methods/holov.md)."""
    own = _padded(scores, place, 0.0)
    mean = own.sum(dim=2) / sizes
    unit = torch.nn.functional.pad(states.float(), (0, 0, 0, 1))
    unit = unit / (unit.norm(dim=-1, keepdim=True) + TINY)
    unit = unit[:, place.flatten()].view(*own.shape, -1)
    similarity = unit @ unit.transpose(2, 3)  # [I, P, z, z]
    similarity.diagonal(dim1=2, dim2=3).zero_()
    others = (sizes - 1).clamp(min=1)[:, None]
    average = similarity.sum(dim=3) / others
    exists = (place < scores.shape[1]).float()
    spread = ((similarity - average.unsqueeze(3)).square() * exists[:, None, :]).sum(dim=3) / others  # [I, P, z]
    spread = (spread * exists).sum(dim=2) / sizes
    share = SHARPNESS * mean * (1 + WEIGHT * spread / (spread + TINY))
    return torch.where(sizes > 1, share, mean)


def _allocate(strip: Tensor, count: int) -> Tensor:
    """[I, P] long: tokens of each strip in proportion to its score, rounded down; one more for the first by weight."""
    weight = strip / (strip.sum(dim=1, keepdim=True) + TINY)
    floor = (weight * count).floor().long()
    rank = weight.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return floor + (rank < count - floor.sum(dim=1, keepdim=True))


def _refill(inside: Tensor, falling: Tensor, filled: Tensor, count: int) -> Tensor:
    """[I, P] tokens of each strip once the rows that were lost have gone to the most attended tokens left."""
    free = inside.masked_fill(falling < filled.unsqueeze(2), float("-inf")).flatten(1)
    rank = free.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    more = (rank < count - filled.sum(dim=1, keepdim=True)) & (free > float("-inf"))
    return filled + more.view(inside.shape).sum(dim=2)
