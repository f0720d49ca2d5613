"""The tokens of a batch as they stand now: left-padded rows of their own lengths, with what travels with every token.

Coordinates count the valid tokens of a row (see `layout`); column = width - length + coordinate.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops.selection import Selection, gather_rows
from ..plans.plan import Plan
from ..plans.shape import VisualShape
from .layout import Layout, Span, padding_mask, row_index


@dataclass(eq=False)
class Group:
    """Images of one shape, at most one per row: they share a plan, so all their lengths agree at every layer.

    Several images of a row are in several groups, so that no stage holds the row's states once per image.

    Attributes:
        plan: their plan; images: ordinals in the batch; rows: their rows; starts: coordinates of their first token.
        count: tokens each has now; seeds: one whole number per image, for seeded methods.
        covers_batch: whether its rows are the rows of the batch, in order.
        ids: [I, count] original patch ids, when recording.
        memory: what selectors keep from stage to stage.
        tower: ([I, n] scores, [I, n, E] metric) of the tower, where the encoder stage acts on entry of the stack.
        probes: by tower layer, [I, n] attention received, likewise.
    """

    plan: Plan
    images: list[int]
    rows: list[int]
    starts: list[int]
    count: int
    seeds: list[int]
    covers_batch: bool
    ids: Tensor | None = None
    memory: dict = field(default_factory=dict)
    tower: tuple[Tensor, Tensor] | None = None
    probes: dict[int, Tensor] = field(default_factory=dict)


def group_images(
    layout: Layout, plan_for: Callable[[VisualShape], Plan], record: bool, device: torch.device
) -> list[Group]:
    """The groups of a batch; their ids only where they are recorded."""
    alike: dict[tuple[VisualShape, int | None, int], list[int]] = {}
    seen: Counter = Counter()
    for ordinal, span in enumerate(layout.spans):
        kind = span.shape, span.image.entered
        seen[span.row, kind] += 1
        alike.setdefault((*kind, seen[span.row, kind]), []).append(ordinal)
    return [
        _group(
            _plan(plan_for(shape), entered),
            images,
            [layout.spans[i] for i in images],
            len(layout.lengths),
            record,
            device,
        )
        for (shape, entered, _), images in alike.items()
    ]


def _plan(plan: Plan, entered: int | None) -> Plan:
    return plan if entered is None or not plan.packed else plan.arriving(entered)


def _group(plan: Plan, images: list[int], spans: list[Span], batch: int, record: bool, device: torch.device) -> Group:
    rows, block = [s.row for s in spans], spans[0].image.block
    ids = None
    if record:
        every = torch.arange(block)
        ids = torch.stack([every if s.image.origin is None else s.image.origin.cpu() for s in spans]).to(device)
    starts, seeds = [s.start for s in spans], [s.image.seed for s in spans]
    group = Group(plan, images, rows, starts, block, seeds, rows == list(range(batch)), ids)
    if plan.encoder is not None and spans[0].image.scores is not None:
        group.tower = (
            torch.stack([s.image.scores for s in spans]).to(device),
            torch.stack([s.image.metric for s in spans]).to(device),
        )
        asked = spans[0].image.probes
        group.probes = {at: torch.stack([s.image.probes[at] for s in spans]).to(device) for at in asked}
    return group


@dataclass(frozen=True)
class Change:
    """New tokens in place of a group's visual ones.

    Attributes:
        group: whose tokens change; count: how many each of its images has afterwards.
        selection, value: the outcome of a stage and its [I, count, D] states; None = the first `count` stay.
    """

    group: Group
    count: int
    selection: Selection | None = None
    value: Tensor | None = None


class Rows:
    """B rows of tokens, padded on the left once they have `arrived`.

    Attributes:
        hidden: [B, L, D] states.
        lengths: valid tokens per row; width: L.
        positions: [B, L] long, or [B, L, A] where a position has A axes; None where they follow from the place.
        features: [B, L, E] more numbers per token, zero for text (Qwen3-VL's deepstack), or None.
        groups: the images; ends: per row, ascending coordinates after the last token of each prompt.
    """

    def __init__(self, hidden: Tensor, layout: Layout, groups: list[Group]):
        self.hidden, self.groups, self.ends = hidden, groups, layout.prompt_ends
        self.width, self.lengths = layout.width, list(layout.lengths)
        self.positions: Tensor | None = None
        self.features: Tensor | None = None
        self._valid: tuple[tuple[int, ...], Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Of the states."""
        return self.hidden.device

    def arrive(self, layout: Layout) -> None:
        """Bring all padding to the left."""
        if not layout.left_padded():
            columns = [layout.mask[b].nonzero()[:, 0] for b in range(len(layout.lengths))]
            self._regather([[c + b * self.width] for b, c in enumerate(columns)], {})

    @property
    def padding(self) -> tuple[int, ...]:
        """Columns of padding in every row."""
        return tuple(self.width - n for n in self.lengths)

    def valid(self) -> Tensor | None:
        """[B, L] bool, False for padding; None where there is none."""
        if self._valid is None or self._valid[0] != self.padding or self._valid[1].shape[1] < self.width:
            made = padding_mask(self.lengths, self.width, self.device)
            self._valid = None if made is None else (self.padding, made)
        # Padding is on the left: where it stays, fewer columns have the same beginning.
        return None if self._valid is None else self._valid[1][:, : self.width]

    def numbered(self, count: int | Tensor) -> Tensor:
        """[B or 1, L] long: the tokens in hand, numbered after `count` earlier ones (int, or [B] long)."""
        positions = torch.arange(self.width, device=self.device)[None]
        if any(n < self.width for n in self.lengths):
            pad = torch.tensor([self.width - n for n in self.lengths], device=self.device)
            positions = (positions - pad[:, None]).clamp(min=0)
        return positions + (count if isinstance(count, int) else count[:, None])

    def blocks(self, row: int) -> list[tuple[int, int]]:
        """(start coordinate, count) of every image in `row`, as it stands now."""
        return sorted((s, g.count) for g in self.groups for r, s in zip(g.rows, g.starts) if r == row)

    def take(self, x: Tensor, group: Group, starts: Sequence[int], count: int) -> Tensor:
        """Tokens of x [B or 1, L, ...] at coordinates start … start+count-1 of each image: [I, count, ...].

        Coordinates before a row's first token read its first column; callers mask them (see `outside`).
        """
        columns = [self.width - self.lengths[row] + start for row, start in zip(group.rows, starts)]
        if len(set(columns)) == 1 and columns[0] >= 0 and (group.covers_batch or x.shape[0] == 1):
            block = x[:, columns[0] : columns[0] + count]
            return block if group.covers_batch else block.expand(len(group.images), *block.shape[1:])
        at = torch.tensor(columns, device=x.device)[:, None] + torch.arange(count, device=x.device)
        rows = torch.tensor(group.rows, device=x.device) if x.shape[0] > 1 else torch.zeros_like(at[:, 0])
        return x[rows[:, None], at.clamp_(min=0)]

    def outside(self, starts: Sequence[int], count: int) -> Tensor | None:
        """[I, count] bool, True where start + j is before a row's first token; None where nowhere."""
        if min(starts) >= 0:
            return None
        first = torch.tensor([-s for s in starts], device=self.device)
        return torch.arange(count, device=self.device) < first[:, None]

    def replace(self, changes: list[Change]) -> None:
        """Put new visual tokens in place of old ones."""
        if len(changes) == 1 and self._aligned(changes[0].group):
            self._splice(changes[0])
            return
        offset, blocks = len(self.lengths) * self.width, {}
        made = [change for change in changes if change.selection is not None]
        for change in changes:
            group, fresh = change.group, change.selection is not None
            for i, (row, start) in enumerate(zip(group.rows, group.starts)):
                first = row * self.width + self.width - self.lengths[row] + start
                begin = offset + i * change.count if fresh else first
                blocks[row, start] = (group.count, torch.arange(begin, begin + change.count))
            offset += len(group.rows) * change.count if fresh else 0
        values = {"hidden": [change.value.flatten(0, 1) for change in made]}
        for name in ("positions", "features"):
            if getattr(self, name) is not None:
                values[name] = [self._carried(name, change).flatten(0, 1) for change in made]
        pieces = self._pieces(blocks)
        self._move({id(change.group): change.count for change in changes})
        self._regather(pieces, values)

    def _carried(self, name: str, change: Change) -> Tensor:
        """What a stage makes of positions (those of the representatives) or features (kept and merged as the states)."""
        x, group = getattr(self, name), change.group
        return _pick(name, self.take(x, group, group.starts, group.count), change.selection)

    def _aligned(self, group: Group) -> bool:
        """Whether every row is full and holds one image, all at the same place."""
        full = all(n == self.width for n in self.lengths)
        return full and len(self.groups) == 1 and group.covers_batch and len(set(group.starts)) == 1

    def _splice(self, change: Change) -> None:
        """`replace` for one aligned group: no index, no copy from the host, so that it can be captured in a graph."""
        group, count = change.group, change.count
        start, stop = group.starts[0], group.starts[0] + group.count
        for name in ("positions", "features"):
            x = getattr(self, name)
            if x is not None:
                own = x[:, start:stop]
                own = own[:, :count] if change.selection is None else _pick(name, own, change.selection)
                setattr(self, name, torch.cat([x[:, :start], own, x[:, stop:]], dim=1))
        value = self.hidden[:, start : start + count] if change.value is None else change.value
        self.hidden = torch.cat([self.hidden[:, :start], value, self.hidden[:, stop:]], dim=1)
        self.width -= group.count - count
        self.lengths = [self.width] * len(self.lengths)
        self._move({id(group): count})

    def _pieces(self, blocks: dict[tuple[int, int], tuple[int, Tensor]]) -> list[list[Tensor]]:
        """Per row, index pieces into the flattened [B * L] states: text as it was, replaced blocks from `blocks`."""
        pieces = []
        for row, length in enumerate(self.lengths):
            base = row * self.width + self.width - length
            parts, cursor = [], 0
            for (_, start), (count, source) in sorted((k, v) for k, v in blocks.items() if k[0] == row):
                parts += [torch.arange(base + cursor, base + start), source]
                cursor = start + count
            pieces.append(parts + [torch.arange(base + cursor, base + length)])
        return pieces

    def _move(self, counts: dict[int, int]) -> None:
        """Shift every coordinate behind a block that shrank; `counts` by group."""
        moves = [
            (r, s, g.count - counts[id(g)]) for g in self.groups if id(g) in counts for r, s in zip(g.rows, g.starts)
        ]

        def shifted(row: int, at: int) -> int:
            return at - sum(gone for r, s, gone in moves if r == row and s < at)

        self.ends = [[shifted(row, e) for e in ends] for row, ends in enumerate(self.ends)]
        for group in self.groups:
            group.starts = [shifted(r, s) for r, s in zip(group.rows, group.starts)]
        for group in self.groups:
            group.count = counts.get(id(group), group.count)

    def _regather(self, pieces: list[list[Tensor]], values: dict[str, list[Tensor]]) -> None:
        """New left-padded rows from index pieces into the flattened old ones followed by `values` of the same name."""
        lengths = [sum(map(len, parts)) for parts in pieces]
        width = max(lengths)
        index = row_index(pieces, width).to(self.device)
        for name in ("hidden", "positions", "features"):
            x = getattr(self, name)
            if x is not None:
                flat, more = x.reshape(-1, *x.shape[2:]), values.get(name)
                flat = torch.cat([flat, *more]) if more else flat
                setattr(self, name, flat.index_select(0, index.reshape(-1)).view(*index.shape, *x.shape[2:]))
        self.lengths, self.width = lengths, width


def _pick(name: str, own: Tensor, selection: Selection) -> Tensor:
    if name == "features":
        return selection.combine(own)
    index = selection.index % own.shape[1]  # a row that stands for no token takes the last one's position
    return own.gather(1, index) if own.ndim == 2 else gather_rows(own, index)
