"""Budget -> Plan -> ledger: what a method will do to an image of known size, before any model is loaded.

Letters used throughout the package: B rows of a batch, I images of one size, U units (crops or frames),
L layers or sequence length, H heads, V visual tokens, K dominant, C contextual, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import VisionDropError
from . import flops as flop_rules
from .shape import VisualShape

View = Any  # what a selector sees, `stack.view.View` or `stack.view.EncoderView`: rooms above this one


@dataclass(frozen=True)
class Kept:
    """How many tokens a stage returns, in the order in which its selection has them.

    Attributes:
        dominant: tokens kept as they are; after an encoder stage [CLS], where kept, counts among them.
        contextual: tokens that stand for merged ones.
    """

    dominant: int
    contextual: int = 0

    @property
    def total(self) -> int:
        """All tokens the stage returns."""
        return self.dominant + self.contextual


class _Keeps:
    """What both kinds of stage have: `kept`, where a whole number stands for as many dominant tokens."""

    kept: Kept

    def __post_init__(self):
        if not isinstance(self.kept, Kept):
            object.__setattr__(self, "kept", Kept(self.kept))

    @property
    def keep(self) -> int:
        """Tokens after the stage."""
        return self.kept.total

    @property
    def dominant(self) -> int:
        """Of `keep`, the tokens kept as they are."""
        return self.kept.dominant

    @property
    def contextual(self) -> int:
        """Of `keep`, the tokens that stand for merged ones."""
        return self.kept.contextual


@dataclass(frozen=True)
class EncoderStage(_Keeps):
    """Reduction between the vision tower and the projector, unit by unit.

    Attributes:
        kept: rows per unit that go to the projector.
        select: `(EncoderView, Kept) -> Selection`, a plain function; its settings are bound with `functools.partial`.
        order: how the units' rows are lined up for the LLM: "unit" (unit after unit) or the multi-crop orders "places" (PruneSID),
            "canvas" (VisionZip: contextual rows last), "raster" (VisPruner: all rows) and "packed" (as the unpruned
            sequence of an unpadded picture: what is in its padding goes, so that its length depends on the picture).
        newlines: in the order "packed", newlines that are handed on with the rows.
        scoring: what chooses, for a reader of the plan: "cls" ([CLS] attention of the tower), or "" for anything else.
        probes: 0-based tower layers whose attention is asked for (`view.at`), up to the one after the feature layer; none = the
            feature layer alone.
        projected: all patches go through the projector first (`view.projected`), and the rows that are kept are projected.
        whole: the units of an image are one sequence, [CLS], newlines and padding left out, and `kept` counts all its rows.
    """

    kept: Kept
    select: Callable[[View, Kept], Any]
    order: str = "unit"
    scoring: str = ""
    probes: tuple[int, ...] = ()
    projected: bool = False
    newlines: int = 0
    whole: bool = False


@dataclass(frozen=True)
class TowerStage(_Keeps):
    """Reduction inside the vision tower, unit by unit: later tower layers see fewer rows.

    Attributes:
        layer: 0-based tower layer whose output is shortened, before the feature layer.
        kept: rows of each unit that go on, [CLS] included.
        select: `(EncoderView, Kept) -> Selection` of rows.
        probes: 0-based tower layers, since the stage before, whose attention is asked for (`view.at`).
        adaptive: how many rows go on depends on the picture, and `kept` is the most; it is asked about one picture at a time.
    """

    layer: int
    kept: Kept
    select: Callable[[View, Kept], Any]
    probes: tuple[int, ...] = ()
    adaptive: bool = False


@dataclass(frozen=True)
class Stage(_Keeps):
    """Reduction on entry of a decoder layer.

    Attributes:
        layer: first 0-based layer that sees the shorter sequence.
        kept: visual tokens after the stage.
        select: `(View, Kept) -> Selection`, a plain function; its settings are bound with `functools.partial`.
        probe: the layer whose projections give the scores: `layer` itself (VisionDrop, PyramidDrop), an earlier one
            (FastV, SparseVLM), or None when no attention is asked for.
        scoring: what the scores cost, for FLOPs: "visual", "row", "rows" or "".
    """

    layer: int
    kept: Kept
    select: Callable[[View, Kept], Any] | None
    probe: int | None = None
    scoring: str = ""


@dataclass(frozen=True)
class Question:
    """The encoder stage reads the question, through CLIP's text half.

    Attributes:
        clip: where it comes from: a loaded CLIPModel, a folder or a hub id; None = the CLIP the tower came from.
    """

    clip: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Plan:
    """All that a method does to one image shape.

    Attributes:
        tower: stages inside the vision tower, before the encoder stage.
        positions: "compact" (every segment counts its tokens 0..n-1, as the official VisionDrop and PyramidDrop do),
            "original" (survivors keep their position, as FastV does) or "entry" (they keep the one they had on entry of
            the LLM, where positions are numbered anew after an encoder stage).
        text_guided: a score reads the question, so the pruned image cannot be reused for another one.
        question: what the encoder stage needs to read the question (`view.text`, `view.joint`), or None.
        extra_flops: of choosing, where it costs more than `Stage.scoring` can say: `(ModelDims) -> FLOPs`.
        seeded: a random choice is made from a fingerprint of the image's pixels (`view.seeds`).
        begin: called once with the view of the stack's input; what it stores in `view.memory` is kept for the stages.
        notes: sentences a reader of the ledger must see (e.g. SparseVLM's other way of counting).
        scaled: an image of another size than the budget is stated for gets its share of it.
        entered: visual tokens at LLM entry of one picture, where they depend on it; None = what `encoder` keeps, or the most.
        share: what was asked for where the budget was given as a share of the image's tokens; `tokens` is the count it became.
    """

    method: str
    shape: VisualShape
    tokens: int | None = None
    encoder: EncoderStage | None = None
    tower: tuple[TowerStage, ...] = ()
    stages: tuple[Stage, ...] = ()
    positions: str = "compact"
    text_guided: bool = False
    question: Question | None = None
    extra_flops: Callable[["flop_rules.ModelDims"], float] | None = None
    seeded: bool = False
    begin: Callable[[Any], None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scaled: bool = True
    entered: int | None = None
    share: float | None = None

    def __post_init__(self):
        """Stages must lie inside the stack, in order, and never grow the sequence."""
        if self.positions not in ("compact", "original", "entry"):
            raise VisionDropError(f"positions={self.positions!r}: allowed are 'compact', 'original' and 'entry'")
        counts, edges = self.counts, [s.layer for s in self.stages]
        if edges != sorted(set(edges)) or any(not 0 <= e < self.shape.layers for e in edges):
            raise VisionDropError(
                f"stage layers {edges}: allowed are distinct ascending layers in 0 … {self.shape.layers - 1}"
            )
        self._check_tower()
        if any(b > a for a, b in zip(counts, counts[1:])) or counts[-1] < 0:
            raise VisionDropError(f"token counts per stage {counts}: a stage cannot keep more tokens than it receives")

    def _check_tower(self) -> None:
        """Stages inside the tower stand in order before the feature layer, and end at an equal length for all pictures."""
        at, rows = [s.layer for s in self.tower], self.tower_rows(self.shape.feature_layer + 2)
        if at != sorted(set(at)) or any(not 0 <= i < self.shape.feature_layer for i in at):
            raise VisionDropError(
                f"tower stages after layers {at}: allowed are distinct ascending layers in 0 … {self.shape.feature_layer - 1}"
            )
        if any(b > a for a, b in zip(rows, rows[1:])):
            raise VisionDropError(f"rows of the tower's layers {rows}: a stage cannot keep more rows than it receives")
        if self.tower and (self.encoder is None or self.tower[-1].adaptive):
            raise VisionDropError(
                "stages inside the tower need an encoder stage, and a last one of a fixed number of rows"
            )

    def tower_rows(self, layers: int) -> list[int]:
        """Rows of a unit, [CLS] included, at the input of the tower's first `layers` layers; the most where it depends."""
        whole, out = self.shape.patches + int(self.shape.cls), []
        for i in range(layers):
            out.append(next((s.keep for s in reversed(self.tower) if s.layer < i), whole))
        return out

    @property
    def adaptive(self) -> bool:
        """Whether lengths inside the tower depend on the picture."""
        return any(stage.adaptive for stage in self.tower)

    @property
    def packed(self) -> bool:
        """Whether the number of visual tokens at LLM entry depends on the picture."""
        return self.encoder is not None and self.encoder.order == "packed"

    def arriving(self, count: int) -> "Plan":
        """The plan of one picture of which `count` tokens enter the LLM; a stage that would keep more keeps them all."""
        stages = tuple(replace(s, kept=Kept(min(s.dominant, count), min(s.contextual, count))) for s in self.stages)
        return replace(self, entered=count, stages=stages)

    @property
    def entry(self) -> int:
        """Visual tokens at LLM entry (after the encoder stage); the most where they depend on the picture."""
        if self.entered is not None:
            return self.entered
        if self.encoder is None:
            return self.shape.tokens
        return self.encoder.keep * (1 if self.encoder.whole else self.shape.units) + self.encoder.newlines

    @property
    def counts(self) -> list[int]:
        """Visual tokens at entry and after each stage."""
        return [self.entry, *(s.keep for s in self.stages)]

    @property
    def active(self) -> bool:
        """Whether anything is removed or changed at all."""
        return self.encoder is not None or bool(self.live_stages)

    @cached_property
    def live_stages(self) -> tuple[Stage, ...]:
        """Stages that change something; one that keeps every token is skipped, bit for bit."""
        counts = self.counts
        return tuple(s for s, n in zip(self.stages, counts) if s.keep < n)

    def tokens_per_layer(self) -> list[int]:
        """Visual tokens at the input of every decoder layer, [L]."""
        out, counts = [], self.counts
        edges = [0, *(s.layer for s in self.stages), self.shape.layers]
        for n, a, b in zip(counts, edges, edges[1:]):
            out += [n] * (b - a)
        return out

    def ledger(self, dims: "flop_rules.ModelDims | None" = None, text_tokens: int = 63) -> "Ledger":
        """The account of this plan; `text_tokens` is the prompt's text, 63 in the paper's FLOPs."""
        dims = dims or flop_rules.LLAVA_7B
        return Ledger(plan=self, dims=replace(dims, layers=self.shape.layers), text_tokens=text_tokens)


def raster_patches(
    method: str, count: int, shape: VisualShape, select: Callable[[View, Kept], Any], probes: tuple[int, ...] = ()
) -> Plan:
    """Every unit sends `count` patches chosen by the tower's attention, unmerged and in raster order; all: no stage."""
    if count == shape.patches and count * shape.units == shape.tokens:
        return Plan(method, shape)
    scoring = "" if probes else "cls"
    return Plan(method, shape, encoder=EncoderStage(Kept(count), select, "raster", scoring, probes))


@dataclass(frozen=True)
class Ledger:
    """Tokens per layer, their mean, cache entries and prefill FLOPs of one plan."""

    plan: Plan
    dims: "flop_rules.ModelDims"
    text_tokens: int

    @property
    def tokens_per_layer(self) -> list[int]:
        """Visual tokens at the input of every decoder layer."""
        return self.plan.tokens_per_layer()

    @property
    def mean(self) -> float:
        """Mean visual tokens per layer: the budget actually spent."""
        per_layer = self.tokens_per_layer
        return sum(per_layer) / len(per_layer)

    @property
    def cache_entries(self) -> int:
        """Key/value entries after the prefill, summed over layers, text included (one entry = one K and one V)."""
        return sum(n + self.text_tokens for n in self.tokens_per_layer)

    @property
    def flops(self) -> float:
        """Prefill FLOPs (multiply-add = 2) in the paper's convention: encoder, projector, decoder, scores, head."""
        return flop_rules.prefill(self.plan, self.dims, self.text_tokens)

    @property
    def lean_flops(self) -> float:
        """The same without what need not be computed (see `flops.prefill`)."""
        return flop_rules.prefill(self.plan, self.dims, self.text_tokens, lean=True)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form, as stored in every result row."""
        plan = self.plan
        return {
            "method": plan.method,
            "tokens": plan.tokens,
            "options": {name: _plain(value) for name, value in plan.options.items()},
            "layout": plan.shape.source,
            "units": plan.shape.units,
            "unpruned": plan.shape.tokens,
            "encoder": [plan.encoder.dominant, plan.encoder.contextual] if plan.encoder else None,
            **({"tower": [[s.layer, s.keep] for s in plan.tower]} if plan.tower else {}),
            "stages": [[s.layer, s.dominant, s.contextual] for s in plan.stages],
            "tokens_per_layer": self.tokens_per_layer,
            "mean": round(self.mean, 4),
            "cache_entries": self.cache_entries,
            "text_tokens": self.text_tokens,
            "tflops": round(self.flops / 1e12, 4),
            "notes": list(plan.notes),
            **({} if plan.share is None else {"share": plan.share}),
        }

    def __str__(self) -> str:
        plan, shape = self.plan, self.plan.shape
        budget = f"--tokens {plan.tokens}" if plan.tokens is not None else "explicit settings"
        if plan.share is not None:
            budget = f"--tokens {100 * plan.share:g}%, which is {plan.tokens}"
        layout = "" if shape.source == "pad" else f" ({shape.source})"
        lines = [f"method {plan.method}, {budget}, {shape.tokens} visual tokens{layout}, {shape.layers} layers"]
        if plan.tower:
            rows = plan.tower_rows(self.dims.vision_layers)
            for first in (i for i, n in enumerate(rows) if i == 0 or n < rows[i - 1]):
                last = next((i for i in range(first, len(rows)) if rows[i] < rows[first]), len(rows)) - 1
                most = " at most" if plan.adaptive and first < plan.tower[-1].layer else ""
                lines.append(f"  tower layers {first:>2} – {last:<2}  {rows[first]:>4} rows{most}")
        if plan.encoder:
            e = plan.encoder
            each = " per unit" if shape.units > 1 and not e.whole else ""
            lines.append(f"  encoder stage  {_parts(e)}{each}")
        edges = [0, *(s.layer for s in plan.stages), shape.layers]
        labels = ["", *map(_parts, plan.stages)]
        for n, a, b, label in zip(plan.counts, edges, edges[1:], labels):
            if b > a:
                lines.append(f"  layers {a:>2} – {b - 1:<2}  {n:>4} tokens" + (f"  ({label})" if label else ""))
        lines.append(
            f"  mean {self.mean:.2f} tokens per layer ({100 * self.mean / shape.tokens:.1f} % of {shape.tokens})"
        )
        lines.append(
            f"  prefill {self.flops / 1e12:.4g} TFLOPs, {self.cache_entries} cache entries "
            f"({self.text_tokens} text tokens, widths of {self.dims.name})"
        )
        return "\n".join(lines + [f"  note: {note}" for note in plan.notes])


def writable(value: Any) -> bool:
    """Whether a row can hold an option's value; a loaded model, for one, is left out."""
    if isinstance(value, (list, tuple)):
        return all(map(writable, value))
    return value is None or isinstance(value, (str, int, float, bool)) or hasattr(value, "tolist")


def _plain(value: Any) -> Any:
    """An option's value as JSON has it: tuples and tensors become lists."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _parts(stage: EncoderStage | Stage) -> str:
    """The parts of what a stage keeps, in words; a part of none is left out."""
    parts = [(stage.dominant, "dominant"), (stage.contextual, "contextual")]
    return " + ".join(f"{count} {name}" for count, name in parts if count) or "none"
