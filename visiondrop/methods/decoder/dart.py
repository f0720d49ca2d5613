"""DART (EMNLP 2025): after two layers, the visual tokens least like a few pivots, served one after the other.

Source: the class `DART` of `ZichenWen1/EPIC`, commit b2ed9cd (docs/methods/dart.md): four visual tokens and four after the
image with the longest keys (L1) are pivots; each in turn takes the m visual tokens still left that resemble it least, by
cosine of the states under the model's last norm.  Pivots are served in the order of a Python set of their places, which is
computed here on the device.  Beyond the original: float32 in every dtype, equal values go to the smallest slot, any number
may be kept, and fewer than four tokens after the image share their part among the pivots there are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.selection import Selection
from ...plans.plan import Kept, Plan, Stage, View
from ...plans.schedule import nearest, scale_layers
from ...plans.shape import VisualShape
from ..method import InDecoder, one_way
from ..options import integer, option
from ..registry import register

FULL_LAYERS = 2  # K, of 32
IMAGE_PIVOTS = TEXT_PIVOTS = 4
PIVOTS = IMAGE_PIVOTS + TEXT_PIVOTS
PRESETS = {  # m of 576 tokens, see configs/methods/dart.yaml
    "author-192": 24,
    "author-128": 16,
    "author-64": 8,
    "epic-192": 23,
    "epic-128": 15,
    "epic-64": 7,
}
PRESET_TOKENS = 576
SMALL, LARGE = 8, 32  # slots of a set of up to four, and of five to eight whole numbers
RUN = 9  # neighbours that a set tries before it jumps


@register("dart")
@dataclass(frozen=True, kw_only=True)
class Dart(InDecoder):
    """`keep` visual tokens from layer `k` on, all of them before; 8 m + 4 in the original."""

    k: int | None = option(
        None, f"layers of this stack that see every visual token; default {FULL_LAYERS} of 32, scaled to its depth"
    )
    keep: int | None = option(None, "tokens kept, instead of a budget; 8 m + 4 in the original", amount=True)
    preset: str | None = option(
        None, "the authors' m for a nominal budget, as a share, instead of a budget", allowed=PRESETS, amount=True
    )

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One stage; another number of visual tokens than nominal keeps the same fraction.  None: budget out of reach."""
        self.one_way(tokens)
        if self.preset is not None:
            one_way(None, preset=self.preset, k=self.k)
        full = scale_layers((FULL_LAYERS,), shape.layers)[0] if self.k is None else self.k
        full = integer("k", full, 1, shape.layers - 1)
        if self.keep is not None:
            count = integer("keep", self.keep, 0, shape.tokens)
        elif self.preset is not None:
            count = PIVOTS * nearest(PRESETS[self.preset] * shape.tokens / PRESET_TOKENS) + IMAGE_PIVOTS
        else:
            exact = (shape.layers * tokens / shape.nominal - full) / (shape.layers - full) * shape.tokens
            if not 0 <= exact <= shape.tokens:
                return None
            count = nearest(exact)
        if count > shape.tokens:
            return None
        rest = (count - IMAGE_PIVOTS) % PIVOTS
        notes = (f"dart's own counts are 8 m + 4; of {count} the first {rest} pivots take one more",) if rest else ()
        stage = Stage(full, Kept(count), select, probe=full - 1)
        plan = Plan("dart", shape, stages=(stage,), positions="original", text_guided=True, notes=notes)
        return self.placed(plan)


def select(view: View, kept: Kept) -> Selection:
    """The image's pivots and what the pivots take: `kept.dominant` slots, ascending; states unchanged."""
    image, text, behind = view.key_lengths()  # [I, n], [I, S], [I, S]
    first, last = view.places()  # [I], [I, S]
    own = image.argsort(dim=1, descending=True, stable=True)[:, :IMAGE_PIVOTS]
    other = text.masked_fill(~behind, -1).argsort(dim=1, descending=True, stable=True)[:, :TEXT_PIVOTS]
    exists = torch.cat([torch.ones_like(own, dtype=torch.bool), behind.gather(1, other)], dim=1)
    order = as_a_set(torch.cat([first[:, None] + own, last.gather(1, other)], dim=1), exists)
    states = torch.nn.functional.normalize(view.final_norm(view.hidden).float(), dim=-1, eps=1e-8)  # [I, n, D]
    behind_states = torch.nn.functional.normalize(view.final_norm(view.suffix_hidden()[0]).float(), dim=-1, eps=1e-8)
    rows = torch.arange(len(own), device=own.device)[:, None]
    pivots = torch.cat([states[rows, own], behind_states[rows, other]], dim=1)
    similarity = pivots @ states.transpose(1, 2)  # [I, 8, n]
    return Selection(index=serve(similarity, own, order, exists, kept.dominant))


def serve(similarity: Tensor, own: Tensor, order: Tensor, exists: Tensor, count: int) -> Tensor:
    """What is kept when the pivots choose one after the other.

    Args:
        similarity: [I, p, n] cosines; own: [I, 4] slots of the image's pivots; order: [I, p] which pivot comes when.
        exists: [I, p] bool; count: tokens to keep.

    Returns:
        [I, count] long, ascending.
    """
    if count < own.shape[1]:
        return own[:, :count].sort(dim=1).values
    taken = torch.zeros_like(similarity[:, 0], dtype=torch.bool).scatter(1, own, True)
    wanted, pivots = count - own.shape[1], exists.sum(dim=1)
    here = exists.gather(1, order)
    turn = here.long().cumsum(dim=1) - 1
    rows = torch.arange(len(own), device=own.device)
    for step in range(order.shape[1]):
        # All take the same number; of a rest the first pivots take one more each.
        part = (wanted // pivots + (turn[:, step] < wanted % pivots)) * here[:, step]
        left = similarity[rows, order[:, step]].masked_fill(taken, float("inf"))
        rank = left.argsort(dim=1, stable=True).argsort(dim=1)
        taken = taken | (rank < part[:, None])
    return (~taken).long().argsort(dim=1, stable=True)[:, :count]


def as_a_set(values: Tensor, exists: Tensor) -> Tensor:
    """The order in which CPython walks through a set of whole numbers, inserted from left to right.

    Args:
        values: [I, p] long >= 0, distinct, p <= 8, the first four always there; exists: [I, p] bool.

    Returns:
        [I, p] long, columns of `values` in that order, those that do not exist last.
    """
    values = values.masked_fill(~exists, 0)
    small, large = _Table(values, exists, SMALL), _Table(values, exists, LARGE)
    columns = torch.arange(values.shape[1], device=values.device).expand_as(values)
    before = min(values.shape[1], IMAGE_PIVOTS + 1)
    for column in range(before):
        small.insert(columns[:, column : column + 1])
    # The fifth makes it grow: what is there moves in the order of its slots, then the others come.
    moved = small.order()[:, :before]
    for column in range(before):
        large.insert(moved[:, column : column + 1])
    for column in range(before, values.shape[1]):
        large.insert(columns[:, column : column + 1])
    grown = exists.sum(dim=1, keepdim=True) > IMAGE_PIVOTS
    return torch.where(grown, large.order(), small.order())


class _Table:
    """Slots of an open-addressing table, one for each of I sets, as CPython fills them."""

    def __init__(self, values: Tensor, exists: Tensor, size: int):
        self.exists, self.size = exists, size
        self.full = torch.zeros(len(values), size, dtype=torch.bool, device=values.device)
        self.slot = torch.full_like(values, size)  # of what is not there, after all others
        self.tries = _tries(values, size)

    def insert(self, column: Tensor) -> None:
        """Put one value of every set [I, 1] into the first free slot of those it tries."""
        tries = self.tries.gather(1, column.unsqueeze(2).expand(-1, -1, self.tries.shape[2]))[:, 0]
        taken = self.full.gather(1, tries)
        slot = tries.gather(1, taken.long().cumprod(dim=1).sum(dim=1, keepdim=True))
        there = self.exists.gather(1, column)
        self.full = self.full.scatter(1, slot, self.full.gather(1, slot) | there)
        self.slot = self.slot.scatter(1, column, torch.where(there, slot, self.size))

    def order(self) -> Tensor:
        """[I, p] columns by ascending slot."""
        return self.slot.argsort(dim=1, stable=True)


def _tries(values: Tensor, size: int) -> Tensor:
    """[I, p, t] slots that each value tries in turn: runs of neighbours where they fit, then a jump."""
    slot, perturb, tries = values % size, values, []
    for _ in range(16 + size):
        tries.append(slot)
        if size > RUN:
            fits = slot + RUN < size
            tries += [torch.where(fits, slot + step, slot) for step in range(1, RUN + 1)]
        perturb = perturb >> 5
        slot = (5 * slot + 1 + perturb) % size
    return torch.stack(tries, dim=2)
