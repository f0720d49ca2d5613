"""What a selector returns, and choosing rows in order."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .constants import ordinals


@dataclass
class Selection:
    """The outcome of one stage for I images of equal size.

    Attributes:
        index: [I, M] long, slot 0 … n-1 of the representative of every output row, in output order; -1 = the row stands for
            no token (HoloV's zeros), is -1 in reports too, and `value` and `mix` say what it is.
        value: [I, M, D] output states, or None where they are the representatives' own, unchanged.
        dominant: how many leading output rows are dominant (unmerged: their states are the representatives' own).
        merged: [I, N] slots that were merged away, ascending, or None.
        assignment: [I, N] for each merged slot the output contextual row it went to, 0 … C-1; -1 = discarded.
        scores: [I, n] float32 the scores the choice was made by, or None.
        mix: where rows are merged, what makes `value` of the states; None = the representatives' own rows are taken.
    """

    index: Tensor
    value: Tensor | None = None
    dominant: int | None = None
    merged: Tensor | None = None
    assignment: Tensor | None = None
    scores: Tensor | None = None
    mix: Callable[[Tensor], Tensor] | None = None

    def combine(self, x: Tensor) -> Tensor:
        """Other numbers of the same tokens, x [I, n, E], kept and merged as the states were: [I, M, E]."""
        return gather_rows(x, self.index) if self.mix is None else self.mix(x)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x [I, n, D], index [I, M] -> [I, M, D]."""
    if len(index) == 1:
        return x[0].index_select(0, index[0]).unsqueeze(0)
    # Whole rows are moved: several times faster on a CPU than `gather`, whose index has an entry per element.
    return x[ordinals(len(index), index.device)[:, None], index]


def ids_at(ids: Tensor, index: Tensor) -> Tensor:
    """Ids [I, n] of the rows of a selection [I, M]; -1 where a row stands for no token."""
    return ids.gather(1, index.clamp(min=0)).masked_fill(index < 0, -1)


def top_k(scores: Tensor, count: int) -> Tensor:
    """Slots of the `count` largest scores, ascending: scores [I, n] -> [I, count] long."""
    return scores.topk(count, dim=1).indices.sort(dim=1).values


def divide(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(slots of the `count` largest scores, all others), both ascending: [I, n] -> ([I, count], [I, n - count]) long.

    Of equal scores the smallest slot is taken.
    """
    falling = scores.sort(dim=1, descending=True, stable=True).indices
    return falling[:, :count].sort(dim=1).values, falling[:, count:].sort(dim=1).values


def ranked(scores: Tensor, count: int) -> Tensor:
    """Slots of the `count` largest scores, the largest first, of equals the smallest slot: [I, n] -> [I, count] long."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


def with_cls(patches: Tensor, cls: bool) -> Tensor:
    """Tower rows of the patches [U, K]: row 0 is [CLS], put in front, where the tower has one ([U, K + 1])."""
    return torch.nn.functional.pad(patches + 1, (1, 0)) if cls else patches


def complement(index: Tensor, total: int) -> Tensor:
    """Slots 0 … total-1 that are not in `index` [I, K], ascending: [I, total - K] long, with no host synchronisation."""
    taken = torch.zeros(index.shape[0], total, dtype=torch.uint8, device=index.device).scatter_(1, index, 1)
    return taken.sort(dim=1, stable=True).indices[:, : total - index.shape[1]]
