"""One forward pass through a decoder stack whose layers hold different numbers of tokens.

Both front-ends (our own `llava/` classes and the hooks on transformers' classes) drive the same object:

    run = pruner.start(stack, hidden, attention_mask, position_ids, cache, layout)
    for i, layer in enumerate(stack.layers):
        hidden, kwargs = run.enter(i, hidden)
        hidden = layer(hidden, cache=cache, **kwargs)
    run.close()
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from ..compat import CACHE
from ..ops.report import Recorder
from ..ops.selection import Selection, gather_rows
from ..plans.plan import Plan, Stage
from .cache import PrunedCache, extend
from .layout import Layout, padding_mask, row_index
from .view import View


@dataclass
class Group:
    """Images of one shape, at most one per row: they share a plan, so all their lengths agree at every layer.

    Several images of a row are in several groups, so that no stage holds the row's states once per image.

    Attributes:
        plan: their plan; images: ordinals in the batch; rows: their rows; starts: coordinates of their first token.
        count: tokens each has now; ids: [I, count] original patch ids, when recording.
    """

    plan: Plan
    images: list[int]
    rows: list[int]
    starts: list[int]
    count: int
    covers_batch: bool
    ids: Tensor | None = None
    memory: dict = field(default_factory=dict)


def cache_count(cache: PrunedCache | None, layer: int) -> int | Tensor:
    """Valid entries per row that `layer` has cached: an int where all rows agree, else [B] long."""
    return 0 if cache is None else cache.segment_of(layer).count


class _Run:
    """Shared by prefill and continuation: the stack, the cache and the per-segment arguments of the layers."""

    def __init__(self, stack, hidden: Tensor, cache: PrunedCache | None, recorder: "Recorder | None"):
        self.stack, self.cache, self.recorder, self.hidden = stack, cache, recorder, hidden
        self.arguments: dict = {}

    def mask(self, hidden: Tensor, valid: Tensor | None, layer: int) -> Tensor | None:
        """The attention mask of the segment that starts at `layer`, in the form its attention backend wants."""
        return create_causal_mask(
            config=self.stack.config,
            inputs_embeds=hidden,
            attention_mask=valid,
            position_ids=None,  # gaps in positions would be taken for packed sequences
            layer_idx=layer,
            **{CACHE: self.cache},
        )

    def set_arguments(self, mask: Tensor | None, rope: tuple[Tensor, Tensor]) -> None:
        """What every layer of the segment is called with."""
        self.arguments = {"attention_mask": mask, "position_embeddings": rope, "position_ids": None}


class PrefillRun(_Run):
    """A pass that brings images: stages act on entry of their layer."""

    def __init__(self, pruner, stack, hidden, attention_mask, position_ids, cache, layout: Layout):
        recorder = Recorder(pruner.report, len(layout.spans), len(layout.lengths)) if pruner.record else None
        super().__init__(stack, hidden, cache, recorder)
        self.pruner = pruner
        self.layout, self.chunk, self.layer = layout, pruner.chunk, 0
        self.tokens = hidden.shape[1]
        self.past = cache.logical if cache is not None else 0
        self.width, self.lengths = layout.width, list(layout.lengths)
        self.groups = self._group(pruner, layout)
        self.compact = all(g.plan.positions == "compact" for g in self.groups)
        self.entry = any(g.plan.positions == "entry" for g in self.groups)
        self.positions = None if self.compact or self.entry else self._original_positions(position_ids)
        self.stages: dict[int, list[tuple[Group, Stage]]] = {}
        for group in self.groups:
            for stage in group.plan.live_stages:
                self.stages.setdefault(stage.layer, []).append((group, stage))
        probes = [(s.probe, s.layer) for pairs in self.stages.values() for _, s in pairs if s.probe is not None]
        self.watched = {probe for probe, layer in probes if probe < layer}
        self.inputs: dict[int, Tensor] = {}
        self.boundaries = {0, *self.stages}
        if cache is not None:
            # Cut all segments now: what one holds must not include this pass when another is cut from it.
            for first in sorted(self.boundaries):
                cache.split(first)
            self.boundaries |= {s.first for s in cache.segments}

    def enter(self, i: int, hidden: Tensor) -> tuple[Tensor, dict]:
        """Called before layer `i` with its input [B, L, D]; returns the input it shall get, and its arguments."""
        if i in self.boundaries:
            self.hidden, self.layer = hidden, i
            if i == 0:
                self._arrive()
            if i in self.stages:
                if i == 0 or (self.past and any(stage.probe == i for _, stage in self.stages[i])):
                    # Scores look at this layer's past, so its own numbering holds for them too.
                    self._embed_positions(cache_count(self.cache, i))
                self._prune(i)
            self._open_segment(i)
            hidden = self.hidden
        if i in self.watched:
            self.inputs[i] = hidden
        if self.recorder is not None:
            self.recorder.layer(self.groups, self._valid_entries(i))
        return hidden, self.arguments

    def close(self) -> None:
        """After the last layer: the logical length grows by the unpruned number of tokens, the prompts are known."""
        self.pruner.prompts.done()
        if self.cache is not None:
            self.cache.logical += self.tokens

    def visual_blocks(self, row: int) -> list[tuple[int, int]]:
        """(start coordinate, count) of every image in `row`, as it stands now."""
        return sorted((s, g.count) for g in self.groups for r, s in zip(g.rows, g.starts) if r == row)

    def _group(self, pruner, layout: Layout) -> list[Group]:
        alike, seen = {}, Counter()
        for ordinal, span in enumerate(layout.spans):
            seen[span.row, span.shape] += 1
            alike.setdefault((span.shape, seen[span.row, span.shape]), []).append(ordinal)
        groups = []
        for (shape, _), images in alike.items():
            spans = [layout.spans[i] for i in images]
            rows = [s.row for s in spans]
            plan = pruner.plan_for(shape)
            block, covers = spans[0].image.block, rows == list(range(len(layout.lengths)))
            group = Group(plan, images, rows, [s.start for s in spans], block, covers)
            if pruner.record:
                every = torch.arange(block)
                ids = [every if s.image.origin is None else s.image.origin.cpu() for s in spans]
                group.ids = torch.stack(ids).to(self.hidden.device)
            groups.append(group)
        return groups

    def _original_positions(self, position_ids: Tensor | None) -> Tensor:
        """[B, T] logical positions."""
        if position_ids is None:
            position_ids = torch.arange(self.tokens, device=self.hidden.device)[None] + self.past
        return position_ids.expand(len(self.layout.lengths), -1)

    def _arrive(self) -> None:
        """Bring the input into the stack's form: padding on the left, rows vacated by the encoder stage gone."""
        layout = self.layout
        if not layout.left_padded():
            columns = [layout.mask[b].nonzero()[:, 0] for b in range(len(layout.lengths))]
            self._regather([[c + b * self.width] for b, c in enumerate(columns)], self.hidden, [])
        arrived = [(g, g.plan.entry) for g in self.groups if g.plan.encoder is not None]
        if arrived:
            self._replace([(g, None, n) for g, n in arrived])
        if self.entry:
            self.positions = self._numbered(cache_count(self.cache, 0)).expand(len(self.lengths), -1)
        for group in self.groups:
            if group.plan.begin is not None:
                group.plan.begin(View(self, group, group.count, None))

    def _prune(self, layer: int) -> None:
        changes = []
        for group, stage in self.stages[layer]:
            view = View(self, group, stage.keep, stage.probe)
            selection = stage.select(view, stage.kept)
            states = view.hidden
            value = gather_rows(states, selection.index) if selection.value is None else selection.value
            if self.recorder is not None:
                group.ids = self.recorder.stage(layer, group, selection, value)
            changes.append((group, (selection, value), stage.keep))
        self._replace(changes)

    def _replace(self, changes: list[tuple[Group, tuple[Selection, Tensor] | None, int]]) -> None:
        """Put new visual blocks in place of old ones.

        Args:
            changes: (group, outcome, count): the selection and its [I, M, D] states, or None to keep the block's
                first `count` rows (what the encoder stage left there).
        """
        if len(changes) == 1 and self._aligned(changes[0][0]):
            self._splice(*changes[0])
            return
        flat_positions = None if self.positions is None else self.positions.reshape(-1)
        values, offset, blocks = [], len(self.lengths) * self.width, {}
        new_positions = []
        for group, outcome, count in changes:
            for i, (row, start) in enumerate(zip(group.rows, group.starts)):
                first = row * self.width + self.width - self.lengths[row] + start
                begin = first if outcome is None else offset + i * count
                blocks[row, start] = (group.count, torch.arange(begin, begin + count))
            if outcome is not None:
                selection, value = outcome
                values.append(value.reshape(-1, value.shape[-1]))
                offset += len(values[-1])
                if flat_positions is not None:
                    own = View(self, group, count, None)._take(self.positions.unsqueeze(-1), group.starts, group.count)
                    new_positions.append(own.squeeze(-1).gather(1, selection.index).reshape(-1))
        pieces = self._pieces(blocks)
        self._move_starts({id(g): n for g, _, n in changes})
        if flat_positions is not None:
            self.positions = torch.cat([flat_positions, *new_positions])
        self._regather(pieces, self.hidden, values)

    def _aligned(self, group: Group) -> bool:
        """Whether every row is full and holds one image, all at the same place."""
        full = all(n == self.width for n in self.lengths)
        return full and len(self.groups) == 1 and group.covers_batch and len(set(group.starts)) == 1

    def _splice(self, group: Group, outcome: tuple[Selection, Tensor] | None, count: int) -> None:
        """`_replace` for one aligned group: no index, no copy from the host, so that it can be captured in a graph."""
        start, stop = group.starts[0], group.starts[0] + group.count
        selection, value = outcome or (None, self.hidden[:, start : start + count])
        if self.positions is not None:
            own = self.positions[:, start:stop]
            own = own[:, :count] if selection is None else own.gather(1, selection.index)
            self.positions = torch.cat([self.positions[:, :start], own, self.positions[:, stop:]], dim=1)
        self.hidden = torch.cat([self.hidden[:, :start], value, self.hidden[:, stop:]], dim=1)
        self.width -= group.count - count
        self.lengths = [self.width] * len(self.lengths)
        self._move_starts({id(group): count})

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

    def _move_starts(self, counts: dict[int, int]) -> None:
        """Shift every coordinate behind a block that shrank."""
        moves = [
            (r, s, g.count - counts[id(g)]) for g in self.groups if id(g) in counts for r, s in zip(g.rows, g.starts)
        ]

        def shifted(row: int, at: int) -> int:
            return at - sum(gone for r, s, gone in moves if r == row and s < at)

        ends = self.layout.prompt_ends
        self.layout.prompt_ends = [[shifted(row, e) for e in ends[row]] for row in range(len(ends))]
        for group in self.groups:
            group.starts = [shifted(r, s) for r, s in zip(group.rows, group.starts)]
        for group in self.groups:
            group.count = counts.get(id(group), group.count)

    def _regather(self, pieces: list[list[Tensor]], hidden: Tensor, values: list[Tensor]) -> None:
        """New left-padded states from index pieces into cat([hidden flattened, *values])."""
        lengths = [sum(map(len, parts)) for parts in pieces]
        width = max(lengths)
        index = row_index(pieces, width).to(hidden.device)
        flat = hidden.reshape(-1, hidden.shape[-1])
        flat = torch.cat([flat, *values]) if values else flat
        self.hidden = flat.index_select(0, index.reshape(-1)).view(*index.shape, -1)
        if self.positions is not None:
            self.positions = self.positions.reshape(-1)[index]
        self.lengths, self.width = lengths, width

    def _open_segment(self, i: int) -> None:
        """Positions, rotary embedding and mask of the layers from `i` on; note the new entries in the cache."""
        valid, count = padding_mask(self.lengths, self.width, self.hidden.device), 0
        if self.cache is not None:
            segment = self.cache.segment_of(i)
            count = segment.count
            extend(segment, valid, len(self.lengths), self.width, self.hidden.device)
            valid = segment.valid
        self._embed_positions(count)
        self.set_arguments(self.mask(self.hidden, valid, i), self.rope)

    def _embed_positions(self, count: int | Tensor) -> None:
        """Rotary embedding of the tokens in hand, after `count` earlier ones (int, or [B] long)."""
        positions = self._numbered(count) if self.compact else self.positions
        self.rope = self.stack.rotary_emb(self.hidden, position_ids=positions)

    def _numbered(self, count: int | Tensor) -> Tensor:
        """[B or 1, L] long: the tokens in hand, numbered after `count` earlier ones."""
        device = self.hidden.device
        positions = torch.arange(self.width, device=device)[None]
        if any(n < self.width for n in self.lengths):
            pad = torch.tensor([self.width - n for n in self.lengths], device=device)
            positions = (positions - pad[:, None]).clamp(min=0)
        return positions + (count if isinstance(count, int) else count[:, None])

    def _valid_entries(self, i: int) -> list[int]:
        """Valid tokens of every row that layer `i` holds after this pass."""
        if self.cache is None:
            return self.lengths
        count = self.cache.segment_of(i).count
        return [count] * len(self.lengths) if isinstance(count, int) else count.tolist()


class ContinueRun(_Run):
    """A pass without images on a pruned cache: a decoding step, or another turn of text."""

    def __init__(self, pruner, stack, hidden, attention_mask, position_ids, cache: PrunedCache):
        super().__init__(stack, hidden, cache, Recorder(pruner.report) if pruner.record else None)
        self.tokens, rows = hidden.shape[1], hidden.shape[0]
        valid = None
        if self.tokens > 1 and attention_mask is not None and not bool(attention_mask[:, -self.tokens :].all()):
            valid = attention_mask[:, -self.tokens :].bool()
        segments = cache.segments
        if pruner.compact:
            positions = _stack_positions(segments, rows, self.tokens, valid, hidden.device)
        elif pruner.plan.positions == "entry":  # numbered by what the first layer holds
            positions = _stack_positions(segments[:1], rows, self.tokens, valid, hidden.device)
        else:
            logical = torch.arange(self.tokens, device=hidden.device)[None] + cache.logical
            positions = (logical if position_ids is None else position_ids)[None]
        self.positions = positions  # [S or 1, B or 1, T]
        cos, sin = stack.rotary_emb(hidden, position_ids=positions.flatten(0, 1))
        shape = (*positions.shape, -1)
        cos, sin = cos.view(shape), sin.view(shape)
        self.opening: dict[int, dict] = {}
        for k, segment in enumerate(segments):
            extend(segment, valid, rows, self.tokens, hidden.device)
            plain = self.tokens == 1 and segment.valid is None
            mask = None if plain else self.mask(hidden, segment.valid, segment.first)
            k = min(k, len(cos) - 1)
            self.opening[segment.first] = {
                "attention_mask": mask,
                "position_embeddings": (cos[k], sin[k]),
                "position_ids": None,
            }

    def enter(self, i: int, hidden: Tensor) -> tuple[Tensor, dict]:
        """Called before layer `i`: the input unchanged, and the arguments of the segment it belongs to."""
        arguments = self.opening.get(i)
        if arguments is not None:
            self.arguments = arguments
        return hidden, self.arguments

    def close(self) -> None:
        """After the last layer: the logical length grows by the number of new tokens."""
        self.cache.logical += self.tokens
        if self.recorder is not None:
            firsts = [s.first for s in self.cache.segments]
            self.recorder.step(self.positions[..., -1], firsts, len(self.stack.layers), self.hidden.shape[0])


def _stack_positions(segments, rows: int, tokens: int, valid: Tensor | None, device: torch.device) -> Tensor:
    """Compact positions of new tokens in every segment: [S, B or 1, T] long."""
    if valid is None and all(isinstance(s.count, int) for s in segments):
        first = torch.tensor([s.count for s in segments], device=device).view(-1, 1, 1)
    else:
        counts = [
            torch.full((rows,), s.count, device=device) if isinstance(s.count, int) else s.count for s in segments
        ]
        first = torch.stack(counts)[:, :, None]
    if valid is None:
        return first + torch.arange(tokens, device=device)
    return first + (valid.long().cumsum(1) - 1).clamp(min=0)
