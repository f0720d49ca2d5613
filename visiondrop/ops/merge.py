"""Contextual merging: what was not chosen joins the tokens it resembles."""

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

    fused = gather_rows(hidden, reference)
    assignment = candidate.new_zeros(candidate.shape)
    if candidate.shape[1]:
        assignment, mean = _join(hidden, metric / metric.norm(dim=-1, keepdim=True), candidate, reference)
        fused = fused + mean
    return Selection(
        index=torch.cat([dominant, reference], dim=1),
        value=torch.cat([gather_rows(hidden, dominant), fused], dim=1),
        dominant=kept,
        merged=candidate,
        assignment=assignment,
    )


def _join(hidden: Tensor, unit: Tensor, candidate: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Each candidate's reference, and the mean of each reference's candidates: ([I, N] long, [I, C, D])."""
    images, contextual = reference.shape
    targets = gather_rows(unit, reference).transpose(1, 2)
    slots = torch.arange(contextual, device=reference.device)
    assignments, total, count = [], 0, 0
    # In blocks of candidates, so that no N x C table grows with the square of a long sequence.
    for block in candidate.split(max(1, JOIN_CELLS // (images * contextual)), dim=1):
        joined = (gather_rows(unit, block) @ targets).argmax(dim=-1)
        # A one-hot product instead of scatter-add: the same sum, deterministic on every device.
        member = (joined.unsqueeze(-1) == slots).to(hidden.dtype)
        total = total + member.transpose(1, 2) @ gather_rows(hidden, block)
        count = count + member.sum(dim=1)
        assignments.append(joined)
    return torch.cat(assignments, dim=1), total / count.clamp(min=1).unsqueeze(-1)
