"""One forward pass through a decoder stack whose layers hold different numbers of tokens.

Both front-ends (our own `llava/` classes and the hooks on transformers' classes) drive the same object:

    run = pruner.start(stack, hidden, attention_mask, position_ids, cache, layout)
    for i, layer in enumerate(stack.layers):
        hidden, kwargs = run.enter(i, hidden)
        hidden = layer(hidden, cache=cache, **kwargs)
    run.close()
"""

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from ..compat import CACHE
from ..ops.report import Recorder
from ..ops.selection import gather_rows
from ..plans.plan import EncoderStage, Stage
from .cache import PrunedCache, extend
from .layout import Layout
from .rows import Change, Group, Rows, group_images
from .view import EntryView, LayerProbe, View

# Rotary embeddings in which a position's does not depend on how many there are.
PER_POSITION = ("default", "linear", "llama3", "yarn")


def without_text_axis(position_ids: Tensor) -> Tensor:
    """[4, B, T] as `generate` makes them for M-RoPE (text, time, height, width) -> [3, B, T]; others as they are."""
    return position_ids[1:] if position_ids.ndim == 3 and len(position_ids) == 4 else position_ids


def cache_count(cache: PrunedCache | None, layer: int) -> int | Tensor:
    """Valid entries per row that `layer` has cached: an int where all rows agree, else [B] long."""
    return 0 if cache is None else cache.segment_of(layer).count


class _Run:
    """Shared by prefill and continuation: the stack, the cache and the per-segment arguments of the layers."""

    def __init__(self, stack, hidden: Tensor, cache: PrunedCache | None, recorder: "Recorder | None"):
        self.stack, self.cache, self.recorder, self.hidden = stack, cache, recorder, hidden
        self.arguments: dict = {}

    def mask(self, hidden: Tensor, valid: Tensor | None, layer: int) -> Tensor | None:
        """The attention mask of the segment that starts at `layer`, in the form its attention backend needs."""
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

    def __init__(self, pruner, stack, hidden, position_ids, cache, layout: Layout, features: Tensor | None = None):
        encoded = all(span.image.scores is None for span in layout.spans)
        sizes = len(layout.spans), len(layout.lengths)
        recorder = Recorder(pruner.report, *sizes, encoded) if pruner.record else None
        super().__init__(stack, hidden, cache, recorder)
        self.pruner, self.layout, self.layer = pruner, layout, 0
        self.tokens = hidden.shape[1]
        self.past = cache.logical if cache is not None else 0
        self.groups = group_images(layout, pruner.plan_for, pruner.record, hidden.device)
        self.rows = Rows(hidden, layout, self.groups)
        self.rows.features = features
        positions = {pruner.positions(g.plan) for g in self.groups}
        self.compact, self.entry = positions == {"compact"}, "entry" in positions
        if not self.compact and not self.entry:
            self.rows.positions = self._original_positions(position_ids)
        self.stages: dict[int, list[tuple[Group, Stage]]] = {}
        for group in self.groups:
            for stage in group.plan.live_stages:
                self.stages.setdefault(stage.layer, []).append((group, stage))
        probes = [(s.probe, s.layer) for pairs in self.stages.values() for _, s in pairs if s.probe is not None]
        self.watched = {probe for probe, layer in probes if probe < layer}
        self.inputs: dict[int, Tensor] = {}
        self._numbers: tuple | None = None  # of `_whole`
        self._whole: tuple[Tensor, Tensor] | None = None
        self.boundaries = {0, *self.stages}
        if cache is not None:
            # Cut all segments now: what one holds must not include this pass when another is cut from it.
            for first in sorted(self.boundaries):
                cache.split(first)
            self.boundaries |= {s.first for s in cache.segments}

    def enter(self, i: int, hidden: Tensor) -> tuple[Tensor, dict]:
        """Called before layer `i` with its input [B, L, D]; returns the input it shall get, and its arguments."""
        if self.rows.features is not None and i:
            hidden = self._add_features(i - 1, hidden)
        if i in self.boundaries:
            self.rows.hidden, self.layer = hidden, i
            if i == 0:
                self._arrive()
            if i in self.stages:
                if i == 0 or (self.past and any(stage.probe == i for _, stage in self.stages[i])):
                    # Scores look at this layer's past, so its own numbering holds for them too.
                    self._embed_positions(cache_count(self.cache, i))
                self._prune(i)
            self._open_segment(i)
            hidden = self.rows.hidden
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

    def _original_positions(self, position_ids: Tensor | None) -> Tensor:
        """[B, T] logical positions, or [B, T, A] where they have A axes."""
        if position_ids is None:
            position_ids = torch.arange(self.tokens, device=self.hidden.device)[None] + self.past
        position_ids = without_text_axis(position_ids)
        if position_ids.ndim == 3:
            position_ids = position_ids.permute(1, 2, 0)
        return position_ids.expand(len(self.layout.lengths), *position_ids.shape[1:])

    def _add_features(self, layer: int, hidden: Tensor) -> Tensor:
        """What Qwen3-VL adds after its first layers: the features of `layer`, as far as their tokens are still here."""
        width = hidden.shape[-1]
        own = self.rows.features[..., layer * width : (layer + 1) * width]
        if (layer + 1) * width == self.rows.features.shape[-1]:
            self.rows.features = None
        return hidden + own

    def _arrive(self) -> None:
        """Bring the input into the stack's form: padding on the left, rows vacated by the encoder stage gone."""
        self.rows.arrive(self.layout)
        arrived = [self._arrived(g) for g in self.groups if g.plan.encoder is not None]
        if arrived:
            self.rows.replace(arrived)
        if self.entry:
            self.rows.positions = self.rows.numbered(cache_count(self.cache, 0)).expand(len(self.rows.lengths), -1)
        for group in self.groups:
            if group.plan.begin is not None:
                group.plan.begin(View(self.rows, group, group.count, None))

    def _arrived(self, group: Group) -> Change:
        """The encoder stage's outcome: made here where the tower's scores came along, else it stands in the block."""
        if group.tower is None:
            return Change(group, group.plan.entry)
        stage = group.plan.encoder
        return self._change("encoder", group, stage, EntryView(self.rows, group, stage.keep, None))

    def _prune(self, layer: int) -> None:
        pairs = [
            (g, stage, View(self.rows, g, stage.keep, self._probe(stage.probe))) for g, stage in self.stages[layer]
        ]
        self.rows.replace([self._change(layer, *pair) for pair in pairs])

    def _change(self, layer: int | str, group: Group, stage: Stage | EncoderStage, view: View) -> Change:
        selection = stage.select(view, stage.kept)
        value = gather_rows(view.hidden, selection.index) if selection.value is None else selection.value
        if self.recorder is not None:
            group.ids = self.recorder.stage(layer, group, selection, value)
        return Change(group, stage.keep, selection, value)

    def _probe(self, at: int | None) -> LayerProbe | None:
        """Layer `at` as it is asked for scores: before it runs, or after (its input was kept)."""
        if at is None:
            return None
        has_run, keys, padding = at < self.layer, None, None
        if self.cache is not None and (self.past or has_run):
            layer: Any = self.cache.layers[at]
            keys, valid = layer.keys, self.cache.segment_of(at).valid
            padding = None if valid is None else ~valid
        states = self.inputs[at] if has_run else self.rows.hidden
        how = {"chunk": self.pruner.chunk, "fused": self.pruner.fused, "own_rotary": self.pruner.own_rotary}
        how["last_norm"] = self.stack.norm
        return LayerProbe(self.stack.layers[at], states, self.rope, keys, has_run, padding, **how)

    def _open_segment(self, i: int) -> None:
        """Positions, rotary embedding and mask of the layers from `i` on; note the new entries in the cache."""
        rows, valid = self.rows, self.rows.valid()
        count: int | Tensor = 0
        if self.cache is not None:
            segment = self.cache.segment_of(i)
            count = segment.count
            extend(segment, valid, len(rows.lengths), rows.width, rows.device)
            valid = segment.valid
        self._embed_positions(count)
        self.set_arguments(self.mask(rows.hidden, valid, i), self.rope)

    def _embed_positions(self, count: int | Tensor) -> None:
        """Rotary embedding of the tokens in hand, after `count` earlier ones (int, or [B] long)."""
        numbers = self.rows.padding, count
        if self.compact and self._numbers == numbers and self.rows.width <= self._whole[0].shape[1]:
            # The same numbers as of a longer segment, from 0 or `count` on: a part of its rotary embedding.
            cos, sin = self._whole
            self.rope = cos[:, : self.rows.width], sin[:, : self.rows.width]
            return
        positions = self.rows.numbered(count) if self.compact else self.rows.positions
        if positions.ndim == 3:
            positions = positions.permute(2, 0, 1)
        rotary = self.stack.rotary_emb
        self.rope = rotary(self.rows.hidden, position_ids=positions)
        if self.compact and isinstance(count, int) and getattr(rotary, "rope_type", None) in PER_POSITION:
            self._numbers, self._whole = numbers, self.rope

    def _valid_entries(self, i: int) -> list[int]:
        """Valid tokens of every row that layer `i` holds after this pass."""
        if self.cache is None:
            return self.rows.lengths
        count = self.cache.segment_of(i).count
        return [count] * len(self.rows.lengths) if isinstance(count, int) else count.tolist()


class ContinueRun(_Run):
    """A pass without images on a pruned cache: a decoding step, or another turn of text."""

    def __init__(self, pruner, stack, hidden, attention_mask, position_ids, cache: PrunedCache):
        super().__init__(stack, hidden, cache, Recorder(pruner.report) if pruner.record else None)
        self.tokens, rows = hidden.shape[1], hidden.shape[0]
        valid = None
        if self.tokens > 1 and attention_mask is not None and not bool(attention_mask[:, -self.tokens :].all()):
            valid = attention_mask[:, -self.tokens :].bool()
        segments = cache.segments
        ropes = self._embed(pruner, position_ids, valid)
        self.opening: dict[int, dict] = {}
        for k, segment in enumerate(segments):
            extend(segment, valid, rows, self.tokens, hidden.device)
            plain = self.tokens == 1 and segment.valid is None
            mask = None if plain else self.mask(hidden, segment.valid, segment.first)
            self.opening[segment.first] = {
                "attention_mask": mask,
                "position_embeddings": ropes[min(k, len(ropes) - 1)],
                "position_ids": None,
            }

    def _embed(self, pruner, position_ids: Tensor | None, valid: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """(cos, sin) for every segment, or one for all of them; notes the `positions` [S or 1, B or 1, T]."""
        hidden, segments, rotary = self.hidden, self.cache.segments, self.stack.rotary_emb
        kind = pruner.positions(pruner.plan)
        if kind != "original":  # "entry": numbered by what the first layer holds
            some = segments if kind == "compact" else segments[:1]
            self.positions = _stack_positions(some, len(hidden), self.tokens, valid, hidden.device)
        else:
            logical = torch.arange(self.tokens, device=hidden.device)[None] + self.cache.logical
            positions = without_text_axis(logical if position_ids is None else position_ids)
            self.positions = positions[None] if positions.ndim == 2 else positions[:1]
            if positions.ndim == 3:
                return [rotary(hidden, position_ids=positions)]
        cos, sin = rotary(hidden, position_ids=self.positions.flatten(0, 1))
        shape = (*self.positions.shape, -1)
        return list(zip(cos.view(shape), sin.view(shape)))

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
        first = torch.tensor([[[s.count]] for s in segments], device=device)
    else:
        counts = [
            torch.full((rows,), s.count, device=device) if isinstance(s.count, int) else s.count for s in segments
        ]
        first = torch.stack(counts)[:, :, None]
    if valid is None:
        return first if tokens == 1 else first + torch.arange(tokens, device=device)
    return first + (valid.long().cumsum(1) - 1).clamp(min=0)
