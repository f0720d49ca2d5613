"""What a selector returns, and the arithmetic that several methods share: top-k in order, and contextual merging."""

from dataclasses import dataclass

import torch
from torch import Tensor

JOIN_CELLS = 1 << 20  # most candidate x reference similarities held at once


@dataclass
class Selection:
    """The outcome of one stage for I images of equal size.

    Attributes:
        index: [I, M] long, slot 0 … n-1 of the representative of every output row, in output order.
        value: [I, M, D] output states, or None where they are the representatives' own, unchanged.
        dominant: how many leading output rows are dominant (unmerged: their states are the representatives' own).
        merged: [I, N] slots that were merged away, ascending, or None.
        assignment: [I, N] for each merged slot the output contextual row it went to, 0 … C-1; -1 = discarded.
        scores: [I, n] float32 the scores the choice was made by, or None.
    """

    index: Tensor
    value: Tensor | None = None
    dominant: int | None = None
    merged: Tensor | None = None
    assignment: Tensor | None = None
    scores: Tensor | None = None


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x [I, n, D], index [I, M] -> [I, M, D]."""
    if len(index) == 1:
        return x[0].index_select(0, index[0]).unsqueeze(0)
    # Whole rows are moved: several times faster on a CPU than `gather`, whose index has an entry per element.
    return x[torch.arange(len(index), device=index.device)[:, None], index]


def top_k(scores: Tensor, count: int) -> Tensor:
    """Slots of the `count` largest scores, ascending: scores [I, n] -> [I, count] long."""
    return scores.topk(count, dim=1).indices.sort(dim=1).values


def with_cls(patches: Tensor, cls: bool) -> Tensor:
    """Tower rows of the patches [U, K]: row 0 is [CLS], put in front, where the tower has one ([U, K + 1])."""
    return torch.nn.functional.pad(patches + 1, (1, 0)) if cls else patches


def complement(index: Tensor, total: int) -> Tensor:
    """Slots 0 … total-1 that are not in `index` [I, K], ascending: [I, total - K] long, with no host synchronisation."""
    taken = torch.zeros(index.shape[0], total, dtype=torch.uint8, device=index.device).scatter_(1, index, 1)
    return taken.sort(dim=1, stable=True).indices[:, : total - index.shape[1]]


def merge(hidden: Tensor, metric: Tensor, dominant: Tensor, contextual: int) -> Selection:
    """Keep the dominant tokens and merge all others into `contextual` tokens (Reduce, `visiondrop.md` §1).

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
