"""Contextual merging: what was not chosen joins the tokens it resembles."""

from typing import Any

import torch
from torch import Tensor

from .selection import Selection, complement, gather_rows

JOIN_CELLS = 1 << 20  # most candidate x reference similarities held at once


def merge(hidden: Tensor, metric: Tensor, dominant: Tensor, contextual: int) -> Selection:
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

    Returns:
        Selection with M = K + C rows: dominant in sequence order, then contextual in reference order.
    """
    kept = dominant.shape[1]
    if contextual == 0:
        return Selection(index=dominant, dominant=kept)
    rest = complement(dominant, hidden.shape[1])
    length = rest.shape[1]
    stride = max(1, length // contextual)
    at_reference = torch.arange(contextual, device=rest.device) * stride
    at_candidate = torch.arange(length - contextual, device=rest.device)
    # Candidate j of a full stretch stands j // (stride - 1) + 1 references further on; those behind the last, all C.
    passed = at_candidate // (stride - 1) + 1 if stride > 1 else at_candidate + contextual
    at_candidate = at_candidate + passed.clamp(max=contextual)
    reference, candidate = rest[:, at_reference], rest[:, at_candidate]

    assignment = candidate.new_zeros(candidate.shape)
    if candidate.shape[1]:
        assignment = _join(metric / metric.norm(dim=-1, keepdim=True), candidate, reference)

    def mix(x: Tensor) -> Tensor:
        fused = gather_rows(x, reference)
        if candidate.shape[1]:
            fused = fused + _means(x, candidate, assignment, contextual)
        return torch.cat([gather_rows(x, dominant), fused], dim=1)

    return Selection(
        index=torch.cat([dominant, reference], dim=1),
        value=mix(hidden),
        dominant=kept,
        merged=candidate,
        assignment=assignment,
        mix=mix,
    )


def _blocks(candidate: Tensor, contextual: int) -> tuple[Tensor, ...]:
    """In blocks of candidates, so that no N x C table grows with the square of a long sequence."""
    return candidate.split(max(1, JOIN_CELLS // (len(candidate) * contextual)), dim=1)


def _join(unit: Tensor, candidate: Tensor, reference: Tensor) -> Tensor:
    """The reference each candidate joins: [I, N] long, 0 … C-1."""
    targets = gather_rows(unit, reference).transpose(1, 2)
    blocks = _blocks(candidate, reference.shape[1])
    return torch.cat([(gather_rows(unit, block) @ targets).argmax(dim=-1) for block in blocks], dim=1)


def _means(x: Tensor, candidate: Tensor, assignment: Tensor, contextual: int) -> Tensor:
    """[I, C, E] mean of the rows of x [I, n, E] that joined each reference; 0 where none did."""
    slots = torch.arange(contextual, device=x.device)
    total: Any = 0
    count: Any = 0
    for block, joined in zip(_blocks(candidate, contextual), _blocks(assignment, contextual)):
        # A one-hot product instead of scatter-add: the same sum, deterministic on every device.
        member = (joined.unsqueeze(-1) == slots).to(x.dtype)
        total = total + member.transpose(1, 2) @ gather_rows(x, block)
        count = count + member.sum(dim=1)
    return total / count.clamp(min=1).unsqueeze(-1)
