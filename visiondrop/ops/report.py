"""What a handle remembers of the last prefill, in original patch ids.

With several crops or frames a patch id is unit x patches + patch, and unit c's [CLS] is -1 - c (see `arrange`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..errors import VisionDropError
from .selection import Selection, ids_at


@dataclass
class StageReport:
    """One stage; every list has one entry per image of the batch, row-major.

    Attributes:
        layer: "encoder", or the first 0-based decoder layer that sees the shorter sequence.
        dominant: [K] ids of unmerged tokens, in sequence order (encoder stage: unit after unit).
        reference: [C] ids of contextual tokens (each carries its reference's id), likewise.
        merged: [N] ids merged away; assignment: [N] index into `reference`, -1 = discarded.
        hidden: [K + C, D] visual states right after the stage, in sequence order (encoder stage: before the projector, or
            after it where it chooses by projected states).
        scores: [n] scores of the tokens the stage received; origin: [n] their ids.
        sequence: [K + C] ids of all tokens that go on, in sequence order.
    """

    layer: int | str
    dominant: list[Tensor | None]
    reference: list[Tensor | None]
    merged: list[Tensor | None]
    assignment: list[Tensor | None]
    hidden: list[Tensor | None]
    scores: list[Tensor | None]
    origin: list[Tensor | None]
    sequence: list[Tensor | None]

    @classmethod
    def empty(cls, layer: int | str, images: int) -> "StageReport":
        """A report with a place for each of `images`."""
        places: Any = ([None] * images for _ in range(8))
        return cls(layer, *places)

    def grow(self, images: int) -> None:
        """Make a place for each of `images`, where there are fewer."""
        missing = images - len(self.sequence)
        for entry in fields(self):
            if entry.name != "layer":
                getattr(self, entry.name).extend([None] * missing)

    def kept(self, image: int = 0) -> Tensor:
        """[K + C] ids of all tokens that go on, in sequence order."""
        ids = self.sequence[image]
        if ids is None:
            raise VisionDropError(f"image {image} of the stage at {self.layer} was not recorded: it was not prefilled")
        return ids

    def record(
        self, images: list[int], ids: Tensor, selection: Selection, values: Tensor, sequence: Tensor | None = None
    ) -> Tensor:
        """Store the outcome for the `images` (ordinals) of one group; returns the new ids [I, M] in sequence order.

        Args:
            ids: [I, n] ids of the incoming tokens; values: [I, M, D] outgoing states in sequence order.
            sequence: [I, M] outgoing ids where their order is not that of `selection.index`.
        """
        out = ids_at(ids, selection.index)
        sequence = out if sequence is None else sequence
        kept = out.shape[1] if selection.dominant is None else selection.dominant
        none = ids.new_empty(0)
        for i, image in enumerate(images):
            self.dominant[image], self.reference[image] = out[i, :kept].cpu(), out[i, kept:].cpu()
            merged, joined = none, none
            if selection.merged is not None and selection.assignment is not None:
                merged, joined = ids[i].gather(0, selection.merged[i]), selection.assignment[i]
            self.merged[image], self.assignment[image] = merged.cpu(), joined.cpu()
            self.hidden[image] = values[i].detach()
            self.scores[image] = None if selection.scores is None else selection.scores[i].detach().cpu()
            self.origin[image] = ids[i].cpu()
            self.sequence[image] = sequence[i].cpu()
        return sequence


@dataclass
class Report:
    """The last prefill, and the decoding steps since.

    Attributes:
        stages: after the encoder and inside the decoder, in the order they ran.
        tower: those inside the vision tower; `layer` is the tower layer whose output they shorten.
        tokens_per_layer: per image, visual tokens at the input of every layer, [L].
        cache_lengths: per row, valid entries of every layer after the prefill (without a cache: tokens seen), [L].
        positions: per row, a list over decoding steps of the position of the last token in every layer, [L].
        seconds: wall time spent on choosing and merging since the method was applied, by stage; the device is waited for.
    """

    stages: list[StageReport] = field(default_factory=list)
    tower: list[StageReport] = field(default_factory=list)
    tokens_per_layer: list[list[int]] = field(default_factory=list)
    cache_lengths: list[list[int]] = field(default_factory=list)
    positions: list[list[list[int]]] = field(default_factory=list)
    seconds: dict[int | str, float] = field(default_factory=dict)

    def stage(self, layer: int | str) -> StageReport:
        """The stage at `layer` ("encoder" or a decoder layer)."""
        return next(s for s in self.stages if s.layer == layer)


class Recorder:
    """Writes one pass into a `Report`; made only when recording was asked for."""

    def __init__(self, report: Report, images: int = 0, rows: int = 0, encoded: bool = True):
        """A prefill (`images` > 0) starts the report afresh; a decoding step adds to it.

        Args:
            encoded: the encoder stage has written its part already.
        """
        self.report = report
        if images:
            report.stages = [s for s in report.stages if encoded and s.layer == "encoder"]
            report.tokens_per_layer = [[] for _ in range(images)]
            report.cache_lengths = [[] for _ in range(rows)]
            report.positions = [[] for _ in range(rows)]

    def layer(self, groups: Any, lengths: list[int]) -> None:
        """One layer is about to run: each group's token count, and the valid entries per row."""
        for group in groups:
            for image in group.images:
                self.report.tokens_per_layer[image].append(group.count)
        for row, length in zip(self.report.cache_lengths, lengths):
            row.append(length)

    def stage(self, layer: int | str, group: Any, selection: Selection, values: Tensor) -> Tensor:
        """A stage has run on `group`; returns the group's new ids [I, M]."""
        known = [s for s in self.report.stages if s.layer == layer]
        report = known[0] if known else StageReport.empty(layer, len(self.report.tokens_per_layer))
        if not known:
            self.report.stages.append(report)
        return report.record(group.images, group.ids, selection, values)

    def step(self, positions: Tensor, firsts: list[int], layers: int, rows: int) -> None:
        """A decoding step has run: positions [S or 1, B or 1] of its last token, per segment starting at `firsts`."""
        table = positions.expand(-1, rows).tolist() if positions.shape[1] == 1 else positions.tolist()
        if len(table) == 1:
            table = table * len(firsts)
        segment_of = [sum(f <= layer for f in firsts) - 1 for layer in range(layers)]
        if len(self.report.positions) != rows:
            self.report.positions = [[] for _ in range(rows)]
        for row in range(rows):
            self.report.positions[row].append([table[s][row] for s in segment_of])


@dataclass(frozen=True)
class Clocked:
    """A selector whose wall time is added to the report of whoever runs it.

    Attributes:
        select: `(view, kept) -> Selection`; layer: its stage, as in `StageReport`; report: gives the report of the thread.
    """

    select: Callable[[Any, Any], Selection]
    layer: int | str
    report: Callable[[], Report]

    def __call__(self, view: Any, kept: Any) -> Selection:
        """What `select` returns."""
        start = _now()
        selection = self.select(view, kept)
        seconds = self.report().seconds
        seconds[self.layer] = seconds.get(self.layer, 0.0) + _now() - start
        return selection

    def __repr__(self) -> str:  # plans are compared by their text
        return repr(self.select)


def _now() -> float:
    """Seconds, after all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
