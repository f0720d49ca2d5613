"""The encoder stage, once, for every front end: pixels in, the rows that enter the language model out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..compat import Model
from ..errors import UnsupportedError
from ..ops.report import Report, StageReport
from ..ops.selection import Selection, gather_rows
from ..plans.plan import EncoderStage, Plan, Question
from ..plans.shape import VisualShape, feature_layer
from .encoder import Cut, EncoderView, Probe, Seen, Settings, WholeView, embed, run_layers
from .questions import Asked
from .units import Picture, grids_of, join_units, pack, sequence_order, tower_ids, whole_ids


@dataclass(frozen=True)
class Eyes:
    """How a model sees.

    Attributes:
        tower: a CLIP or SigLIP vision transformer; select_layer: which of its hidden states is read, e.g. -2.
        projector: [I, m, D] tower states -> [I, m, D'] embeddings of the language model.
        newline: [D'] what closes the rows of an unpadded picture, or None.
    """

    tower: Model
    select_layer: int
    projector: Callable[[Tensor], Tensor]
    newline: Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """I pictures of one shape, ready for the language model.

    Attributes:
        rows: per picture [m, D'] embeddings, in the LLM's order; ids: [m] their ids when recording, else None.
        hidden: [I * U, R, D] the tower's output.
    """

    rows: Sequence[Tensor]
    ids: Sequence[Tensor] | None
    hidden: Tensor


def encode(pruner: Any, eyes: Eyes, pictures: Sequence[Picture], images: list[int], total: int) -> Encoded:
    """Tower, encoder stage and projector for I pictures of one shape.

    Args:
        pruner: the method that is applied (`pruner.Pruner`); its plan for this shape has an encoder stage.
        images: ordinals of these pictures in the batch, ascending; total: images of the batch, as far as known.
    """
    return reduce(pruner, eyes, look(pruner, eyes, pictures), pictures, images, total)


def look(pruner: Any, eyes: Eyes, pictures: Sequence[Picture]) -> Seen:
    """The tower up to its feature layer, with what the stages ask of it.

    Where lengths inside the tower depend on the picture, one picture after the other: none changes for its neighbours.
    """
    plan = pruner.plan_for(pictures[0].shape)
    if not plan.adaptive:
        return _look(pruner, eyes, plan, pictures)
    alone = [_look(pruner, eyes, plan, [picture], i) for i, picture in enumerate(pictures)]
    return _together(alone)


def _look(pruner: Any, eyes: Eyes, plan: Plan, pictures: Sequence[Picture], first: int = 0) -> Seen:
    tower = eyes.tower
    last, like = feature_layer(len(tower.encoder.layers), eyes.select_layer), next(tower.parameters())
    asked = plan.encoder.probes or (last,)
    behind = tuple(i for i in asked if i == last + 1 < len(tower.encoder.layers))
    if max(tuple(i for i in asked if i not in behind) + tuple(s.layer + 1 for s in plan.tower), default=0) > last:
        raise UnsupportedError(
            f"method {pruner.method!r} asks for tower layer {max(asked)}, and vision_feature_layer={eyes.select_layer} reads "
            f"the output of layer {last}: leave vision_feature_layer out"
        )
    pixels = torch.cat([p.pixels for p in pictures]).to(like.device, like.dtype)
    seen = Seen(embed(tower, pixels), -1, tower.encoder.layers[0].self_attn.num_heads, {})
    for stage in plan.tower:
        _run_to(seen, tower, stage.layer, stage.probes)
        view = EncoderView(seen, plan.shape.cls, stage.keep, Settings(pruner.chunk, pruner.fused))
        selection, rows = stage.select(view, stage.kept), seen.rows
        seen.hidden = gather_rows(seen.hidden, selection.index)
        seen.rows = selection.index if rows is None else rows.gather(1, selection.index)
        if pruner.record:
            seen.cuts.append(Cut(stage.layer, first, rows, selection, seen.hidden))
    _run_to(seen, tower, last, [i for i in asked if i not in behind])
    for i in behind:
        seen.probes[i] = Probe()
        with seen.probes[i].watch(tower.encoder.layers[i].self_attn) as probe:
            probe.project(tower.encoder.layers[i], seen.hidden)
    return seen


def _run_to(seen: Seen, tower: Model, last: int, probes: Sequence[int]) -> None:
    """The tower's layers up to `last`, watched where `probes` say."""
    seen.probes = {i: Probe() for i in probes}
    seen.hidden, seen.layer = run_layers(tower, seen.hidden, seen.layer + 1, last, seen.probes), last


def _together(alone: Sequence[Seen]) -> Seen:
    """Pictures seen one by one, whose lengths agree in the end."""
    if len(alone) == 1:
        return alone[0]
    probes = {}
    for layer in alone[0].probes:
        probes[layer] = Probe()
        for name in ("query", "key", "value"):
            setattr(probes[layer], name, torch.cat([getattr(seen.probes[layer], name) for seen in alone]))
    hidden, rows = (torch.cat([getattr(seen, name) for seen in alone]) for name in ("hidden", "rows"))
    return Seen(hidden, alone[0].layer, alone[0].heads, probes, {}, rows, [cut for seen in alone for cut in seen.cuts])


def reduce(pruner: Any, eyes: Eyes, seen: Seen, pictures: Sequence[Picture], images: list[int], total: int) -> Encoded:
    """`encode` from what the tower has made of the pictures."""
    shape = pictures[0].shape
    plan = pruner.plan_for(shape)
    stage, asked = plan.encoder, None
    if plan.question is not None:
        asked = ask(pruner, eyes, plan.question, pictures, images, total)
    seeds = [pruner.seed_of(p.pixels) for p in pictures for _ in range(shape.units)] if plan.seeded else ()
    settings = Settings(pruner.chunk, pruner.fused)
    view = EncoderView(seen, shape.cls, stage.keep, settings, eyes.projector, asked, seeds)
    if stage.whole:
        whole = WholeView(view, shape, whole_ids(pictures).to(seen.hidden.device))
        return _reduce_whole(pruner, stage, seen, whole, eyes, images, total)
    selection = stage.select(view, stage.kept)
    value = selection.value
    if value is None and stage.projected:
        value = gather_rows(view.projected, selection.index - int(shape.cls))
    elif value is None:
        value = gather_rows(seen.hidden, selection.index)
    value, sequence = value.reshape(len(pictures), -1, value.shape[-1]), None
    if stage.order == "packed":
        return _packed(pruner, eyes, seen, selection, value, pictures, images, total)
    if shape.units > 1 or pruner.record:
        ids = ids_of(shape, seen.rows, len(pictures), selection.index.device)
        sequence, order = line_up(selection, ids, stage, shape, pictures)
        value = value if order is None else gather_rows(value, order)
        if pruner.record:
            record(pruner.report, shape, seen, images, total)
            joined = join_units(selection, shape.units, seen.hidden.shape[1])
            pruner.report.stages[0].record(images, ids, joined, value, sequence)
    embeds = value if stage.projected else eyes.projector(value)
    return Encoded(list(embeds), list(sequence) if pruner.record else None, seen.hidden)


def _packed(
    pruner: Any,
    eyes: Eyes,
    seen: Seen,
    selection: Selection,
    value: Tensor,
    pictures: Sequence[Picture],
    images: list[int],
    total: int,
) -> Encoded:
    """`reduce` in the order "packed": each picture has a length of its own, which is read from the device."""
    shape = pictures[0].shape
    stage = pruner.plan_for(shape).encoder
    ids = ids_of(shape, seen.rows, len(pictures), selection.index.device)
    joined, rows, sequences = join_units(selection, shape.units, seen.hidden.shape[1]), [], []
    if pruner.record:
        record(pruner.report, shape, seen, images, total)
    for i, picture in enumerate(pictures):
        kept = ids[i].gather(0, joined.index[i])
        order, sequence = pack(kept, picture.ids.to(kept.device), shape.units * shape.patches, bool(stage.newlines))
        own = value[i] if stage.projected else eyes.projector(value[i])
        if stage.newlines:
            own = torch.cat([own, eyes.newline[None].to(own.device, own.dtype)])
        rows.append(own[order])
        sequences.append(sequence)
        if pruner.record:
            states = own if stage.projected else value[i]
            alone = replace(joined, **{f.name: _row(getattr(joined, f.name), i) for f in fields(joined)})
            pruner.report.stages[0].record([images[i]], ids[i : i + 1], alone, states[order][None], sequence[None])
    return Encoded(rows, sequences if pruner.record else None, seen.hidden)


def _row(x: Any, i: int) -> Any:
    """One image of a selection's field."""
    return x[i : i + 1] if isinstance(x, Tensor) else x


def _reduce_whole(
    pruner: Any, stage: EncoderStage, seen: Seen, view: WholeView, eyes: Eyes, images: list[int], total: int
) -> Encoded:
    """`reduce` where the choice is among all tokens of a picture at once, and in the order of the selection."""
    selection, sequence = stage.select(view, stage.kept), None
    value = selection.value
    if value is None:
        value = gather_rows(view.projected if stage.projected else view.hidden, selection.index)
    if pruner.record:
        record(pruner.report, view.shape, seen, images, total)
        sequence = pruner.report.stages[0].record(images, view.ids, selection, value)
    embeds = value if stage.projected else eyes.projector(value)
    return Encoded(list(embeds), None if sequence is None else list(sequence), seen.hidden)


def ask(
    pruner: Any, eyes: Eyes, question: Question, pictures: Sequence[Picture], images: list[int], total: int
) -> Asked:
    """The pictures' questions through CLIP's text half, repeated for their units."""
    like = next(eyes.tower.parameters())
    texts = pruner.reader.questions.of(images, total, [p.question for p in pictures], pruner.method)
    half = pruner.reader.half(question.clip, like.device)
    text = half.embed(texts).to(like.device).repeat_interleave(pictures[0].shape.units, dim=0)
    return Asked(half, text, eyes.tower.post_layernorm)


def ids_of(shape: VisualShape, rows: Tensor | None, images: int, device: torch.device) -> Tensor:
    """[I, U * R] ids of the rows in hand.

    Args:
        rows: [I * U, R] which of the tower's own they are, or None where all.
    """
    ids = tower_ids(shape.units, shape.patches, shape.cls, device)
    if rows is None:
        return ids.expand(images, -1)
    return ids.view(shape.units, -1).repeat(images, 1).gather(1, rows).view(images, -1)


def line_up(
    selection: Selection, ids: Tensor, stage: EncoderStage, shape: VisualShape, pictures: Sequence[Picture]
) -> tuple[Tensor, Tensor | None]:
    """The LLM's order of the rows that the units keep.

    Args:
        selection: tensors with a leading axis of I * U; ids: [I, U * R] before the stage.

    Returns:
        ([I, U * keep] ids in order; [I, U * keep] long, that order, or None where it is unit after unit).
    """
    images, units = len(pictures), shape.units
    sequence = ids.reshape(images * units, -1).gather(1, selection.index).view(images, units, -1)
    if units == 1:
        return sequence.flatten(1), None
    whole = selection.dominant is None or stage.order in ("raster", "places")
    dominant = sequence.shape[2] if whole else selection.dominant
    grids = None if stage.order == "unit" else grids_of(pictures)
    # A row's place is that of its own patch, or, as PruneSID has it, of the patch that comes next in the raster.
    places = sequence.sort(dim=2).values if stage.order == "places" else sequence
    order = sequence_order(places, dominant, shape.patches, grids)
    return sequence.flatten(1).gather(1, order), order


def record(report: Report, shape: VisualShape, seen: Seen, images: list[int], total: int) -> None:
    """Make room in the report, which the first picture of a batch starts afresh, and write down cuts inside the tower."""
    if not report.stages or images[0] == 0:
        report.stages, report.tower = [StageReport.empty("encoder", total)], []
    report.stages[0].grow(total)
    for cut in seen.cuts:
        known = next((s for s in report.tower if s.layer == cut.layer), None)
        if known is None:
            known = StageReport.empty(cut.layer, total)
            report.tower.append(known)
        known.grow(total)
        count = len(cut.hidden) // shape.units
        ids = ids_of(shape, cut.rows, count, cut.hidden.device)
        joined = join_units(cut.selection, shape.units, ids.shape[1] // shape.units)
        states = cut.hidden.reshape(count, -1, cut.hidden.shape[-1])
        known.record(images[cut.first : cut.first + count], ids, joined, states)
