"""Contextual merging: what was not chosen joins the tokens it resembles."""

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .constants import unit_rows
from .selection import Selection, complement, gather_rows

JOIN_CELLS = 1 << 20  # most candidate x reference similarities held at once


def merge(hidden: Tensor, metric: Tensor, dominant: Tensor, contextual: int, rest: Tensor | None = None) -> Selection:
    """Keep the dominant tokens and merge all others into `contextual` tokens (the reduction that
    every stage of VisionDrop shares).

    References stand at a uniform stride in the non-dominant tokens; every other one joins the reference with the
    largest cosine of metrics (ties to the earlier).  A contextual token is its reference *plus* the mean of its
    candidates (official code; the paper says only "fused").

    Args:
        hidden: [I, n, D] states in sequence order.
        metric: [I, n, E] vectors compared by cosine.
        dominant: [I, K] long, ascending slots.
        contextual: C >= 0; 0 keeps the dominant tokens only.
        rest: [I, n - K] long, the other slots, ascending, where they are at hand.

    Returns:
        Selection with M = K + C rows: dominant in sequence order, then contextual in reference order.
    """
    kept = dominant.shape[1]
    if contextual == 0:
        return Selection(index=dominant, dominant=kept)
    rest = complement(dominant, hidden.shape[1]) if rest is None else rest
    reference, between, behind = _strides(rest, contextual)
    # One index for all: what is gathered together costs one operator instead of three.
    order = torch.cat([dominant, reference, between, behind], dim=1)
    index, candidate = order[:, : kept + contextual], order[:, kept + contextual :]
    blocks = _blocks(candidate, contextual)

    def rows_of(x: Tensor, skipped: int) -> tuple[Tensor, Iterable[Tensor]]:
        """Rows of x at `index` from place `skipped` on, and block by block those of the candidates."""
        if len(blocks) > 1:
            return gather_rows(x, index[:, skipped:]), (gather_rows(x, block) for block in blocks)
        rows, count = gather_rows(x, order[:, skipped:]), kept + contextual - skipped
        return rows[:, :count], [rows[:, count:]]

    assignment = candidate.new_zeros(candidate.shape) if not candidate.shape[1] else None
    if assignment is None:
        targets, others = rows_of(metric / metric.norm(dim=-1, keepdim=True), kept)
        joined = [(block @ targets.transpose(1, 2)).argmax(dim=-1) for block in others]
        assignment = joined[0] if len(joined) == 1 else torch.cat(joined, dim=1)

    def mix(x: Tensor) -> Tensor:
        rows, others = rows_of(x, 0)
        if not candidate.shape[1]:
            return rows
        means = _means(others, _blocks(assignment, contextual), contextual)
        return torch.cat([rows[:, :kept], rows[:, kept:] + means], dim=1)

    return Selection(index=index, value=mix(hidden), dominant=kept, merged=candidate, assignment=assignment, mix=mix)


def _strides(rest: Tensor, contextual: int) -> tuple[Tensor, Tensor, Tensor]:
    """The references of `rest` [I, m], [I, C], and the others in ascending order, in two parts."""
    stride = max(1, rest.shape[1] // contextual)
    stretches = rest[:, : contextual * stride].unflatten(1, (contextual, stride))
    return stretches[:, :, 0], stretches[:, :, 1:].flatten(1), rest[:, contextual * stride :]


def _blocks(candidate: Tensor, contextual: int) -> tuple[Tensor, ...]:
    """In blocks of candidates, so that no N x C table grows with the square of a long sequence."""
    return candidate.split(max(1, JOIN_CELLS // (len(candidate) * contextual)), dim=1)


def _means(others: Iterable[Tensor], assignment: Sequence[Tensor], contextual: int) -> Tensor:
    """[I, C, E] mean of the candidates' rows that joined each reference; 0 where none did.

    Args:
        others: blocks of rows [I, b, E]; assignment: for each block [I, b] long, 0 … C-1.
    """
    totals, counts = [], []
    for block, joined in zip(others, assignment):
        # A one-hot product instead of scatter-add: the same sum, deterministic on every device.
        member = functional.embedding(joined, unit_rows(contextual, block.dtype, block.device))
        totals.append(member.transpose(1, 2) @ block)
        counts.append(member.sum(dim=1))
    total, count = functools.reduce(torch.add, totals), functools.reduce(torch.add, counts)
    return total / count.clamp(min=1).unsqueeze(-1)
