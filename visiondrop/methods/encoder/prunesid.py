"""PruneSID (ICLR 2026): after the encoder, patches of every principal component, without near-duplicates, and [CLS].

Source: `ZhengyaoFang/PruneSID`, commit 4ef17d9 (docs/methods/prunesid.md): a patch belongs to the component on which it loads
most; inside a group near-duplicates of what [CLS] attends to more are moved to the end; groups get tokens by how many unlike
patches they have.  The components come from a randomised method, whose matrix is drawn from a fingerprint of the picture here
and from a global generator in the original.  Beyond the original: float32 in every dtype, equal values go to the smallest patch
or group, and `next_order=raster` gives every crop's patch its own place.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import VisionDropError
from ...ops.selection import Selection
from ...plans.plan import EncoderStage, Kept, Plan, View
from ...plans.schedule import per_unit
from ...plans.shape import VisualShape
from ..method import Method
from ..options import option
from ..registry import register

PER_GROUP = 4  # tokens to a group
LEAST, MOST, STEP = 1, 5, 64  # of a group; the most once for every begun 64 tokens
SOFTNESS = 32  # the threshold is T / 32 times the mean similarity
PASSES = 2  # of the randomised method
ORDERS = {"official": "places", "raster": "raster"}


@register("prunesid")
@dataclass(frozen=True, kw_only=True)
class PruneSID(Method):
    """Every unit (crop, frame) sends T rows to the decoder, [CLS] first, then group by group."""

    noise: Sequence[Tensor] | None = option(
        None,
        "the random matrix [n, T / 4], or a list of one for all pictures; n = patches of a unit, or the tower's width where that "
        "is less.  Drawn from `seed` and the image's fingerprint where not given",
    )
    seed: int = option(0, "of the random matrix", low=0, high=2**31 - 1)
    next_order: str = option(
        "official", "places of the tiles' patches: exchanged as in the original, or each its own", allowed=ORDERS
    )

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One encoder stage.  None: budget out of reach, or below one group."""
        self.one_way(tokens)
        count = per_unit(tokens, shape)
        if count is None or count < PER_GROUP:
            return None
        noise = None if self.noise is None else _one_matrix(self.noise, count // PER_GROUP)
        pick = partial(select, seed=self.seed, noise=noise)
        stage = EncoderStage(Kept(count), pick, order=ORDERS[self.next_order], scoring="cls")
        return Plan("prunesid", shape, encoder=stage, seeded=noise is None)


def _one_matrix(noise: Sequence[Tensor] | Tensor, groups: int) -> Tensor:
    matrix = torch.as_tensor(noise[0] if len(noise) == 1 else noise)
    if matrix.ndim != 2 or matrix.shape[1] != groups:
        raise VisionDropError(
            f"noise of shape {list(matrix.shape)}: give one matrix of {groups} columns, a quarter of the rows that a unit keeps"
        )
    return matrix.float()


def select(view: View, kept: Kept, seed: int, noise: Tensor | None) -> Selection:
    """[CLS], where there is one, and patches group by group: `kept.dominant` rows."""
    first = int(view.cls)
    scores, states = view.score(), view.hidden[:, first:].float()
    count = kept.dominant
    size = min(states.shape[1:])
    random = draw(view.seeds, size, count // PER_GROUP, seed, noise).to(states.device)
    group = groups(states, random)
    chosen = queue(states, scores, group, random.shape[2], count, count - first)
    if first:
        chosen = torch.nn.functional.pad(chosen + 1, (1, 0))
    return Selection(index=chosen, scores=scores)


def draw(seeds: Sequence[int], size: int, columns: int, seed: int, noise: Tensor | None) -> Tensor:
    """[U or 1, size, columns] float32: `noise` for every unit, or standard normal by picture, whatever the batch."""
    if noise is not None:
        if len(noise) != size:
            raise VisionDropError(
                f"noise of {len(noise)} rows: give {size}, the patches of a unit or the tower's width, whichever is less"
            )
        return noise[None]
    made = {
        image: torch.randn(
            size, columns, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {image}".encode()))
        )
        for image in set(seeds)
    }
    return torch.stack([made[image] for image in seeds])


def groups(states: Tensor, random: Tensor) -> Tensor:
    """The component on which each patch loads most.

    Args:
        states: [U, n, D] float32; random: [U or 1, min(n, D), G].

    Returns:
        [U, n] long, 0 … G-1.
    """
    x = states.sigmoid()
    x = x - x.mean(dim=2, keepdim=True)  # a patch is centred over its channels
    wide = x.shape[2] >= x.shape[1]
    tall = x.transpose(1, 2) if wide else x  # [U, m, k], m >= k
    basis = torch.linalg.qr(tall @ random).Q
    for _ in range(PASSES):
        basis = torch.linalg.qr(tall.transpose(1, 2) @ basis).Q
        basis = torch.linalg.qr(tall @ basis).Q
    left, _, right = torch.linalg.svd(basis.transpose(1, 2) @ tall, full_matrices=False)
    vectors = right.transpose(1, 2) if wide else basis @ left  # [U, n, G]
    return vectors.abs().argmax(dim=2)


def queue(states: Tensor, scores: Tensor, group: Tensor, count: int, total: int, wanted: int) -> Tensor:
    """The patches that are kept, group by group, from each the first of its queue.

    Args:
        group: [U, n] of `count` groups; total: T; wanted: patches to keep, T without [CLS].

    Returns:
        [U, wanted] long.
    """
    unlike = distinct(states, scores, group, total)
    member = torch.nn.functional.one_hot(group, count)  # [U, n, G]
    sizes, own = member.sum(dim=1), (member * unlike.unsqueeze(2)).sum(dim=1)
    share = shares(sizes, own, total, wanted)
    # By group, what is unlike first, each by falling attention: sorted from the last key to the first.
    order = scores.argsort(dim=1, descending=True, stable=True)
    for key in (~unlike, group):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    at = group.gather(1, order)
    place = torch.arange(order.shape[1], device=order.device) - (sizes.cumsum(dim=1) - sizes).gather(1, at)
    left_out = place >= share.gather(1, at)
    return order.gather(1, left_out.long().argsort(dim=1, stable=True)[:, :wanted])


def distinct(states: Tensor, scores: Tensor, group: Tensor, total: int) -> Tensor:
    """[U, n] bool: patches of which no other of their group, more attended and distinct itself, is a near-duplicate."""
    unit = states / states.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    similarity = unit @ unit.transpose(1, 2)
    n = similarity.shape[1]
    threshold = total / SOFTNESS * similarity.triu(1).sum(dim=(1, 2)) / (n * (n - 1) / 2)
    order = scores.argsort(dim=1, descending=True, stable=True)
    at = order[:, :, None], order[:, None, :]
    rows = torch.arange(len(order), device=order.device)[:, None, None]
    like = similarity[rows, at[0], at[1]] > threshold[:, None, None]
    like &= group[rows, at[0]] == group[rows, at[1]]
    like = like.triu_(1)
    kept = torch.ones_like(order, dtype=torch.bool)
    for i in range(n - 1):  # by falling attention: what is kept removes what it is like
        kept[:, i + 1 :] &= ~(like[:, i, i + 1 :] & kept[:, i : i + 1])
    return torch.zeros_like(kept).scatter(1, order, kept)


def shares(sizes: Tensor, unlike: Tensor, total: int, wanted: int) -> Tensor:
    """Tokens of each group.

    Args:
        sizes, unlike: [U, G] long, patches of each group, and distinct ones; total: T; wanted: tokens to give out.

    Returns:
        [U, G] long, of sum `wanted`.
    """
    lower = sizes.clamp(max=LEAST)
    upper = torch.minimum(sizes, unlike).clamp(max=MOST * -(-total // STEP))
    # One more for every group that has one, until there is room for all: how many rounds that takes.
    rounds = torch.arange(total, device=sizes.device).view(-1, 1, 1)
    room = torch.minimum(upper + rounds, sizes).sum(dim=2)  # [T, U]
    upper = torch.minimum(upper + (room < total).sum(dim=0)[:, None], sizes)
    rest = (wanted - lower.sum(dim=1, keepdim=True)).clamp(min=0)
    part = unlike.cumsum(dim=1).float() / unlike.sum(dim=1, keepdim=True)
    edges = (part * rest).round().long()
    share = torch.minimum(edges.diff(dim=1, prepend=torch.zeros_like(edges[:, :1])) + lower, upper)
    order = unlike.argsort(dim=1, descending=True, stable=True)
    free = (upper - share).gather(1, order)
    missing = wanted - share.sum(dim=1, keepdim=True)
    more = torch.minimum((missing - (free.cumsum(dim=1) - free)).clamp(min=0), free)
    return share + torch.zeros_like(share).scatter(1, order, more)
