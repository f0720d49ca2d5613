"""The encoder stage, once, for every front end: pixels in, the rows that enter the language model out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..ops.report import StageReport
from ..ops.selection import Selection, gather_rows
from ..plans.plan import EncoderStage
from ..plans.shape import VisualShape, feature_layer
from .encoder import EncoderView, Probe, Seen, Settings, embed, run_layers
from .units import Picture, grids_of, join_units, sequence_order, tower_ids


@dataclass(frozen=True)
class Eyes:
    """How a model sees.

    Attributes:
        tower: a CLIP or SigLIP vision transformer; select_layer: which of its hidden states is read, e.g. -2.
        projector: [I, m, D] tower states -> [I, m, D'] embeddings of the language model.
    """

    tower: nn.Module
    select_layer: int
    projector: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Encoded:
    """I pictures of one shape, ready for the language model.

    Attributes:
        rows: [I, U * keep, D'] embeddings, in the LLM's order; ids: [I, U * keep] their ids when recording, else None.
        hidden: [I * U, R, D] the tower's output.
    """

    rows: Tensor
    ids: Tensor | None
    hidden: Tensor


def encode(pruner: Any, eyes: Eyes, pictures: Sequence[Picture], images: list[int], total: int) -> Encoded:
    """Tower, encoder stage and projector for I pictures of one shape.

    Args:
        pruner: the method that is applied (`pruner.Pruner`); its plan for this shape has an encoder stage.
        images: ordinals of these pictures in the batch, ascending; total: images of the batch, as far as known.
    """
    return reduce(pruner, eyes, look(pruner, eyes, pictures), pictures, images, total)


def look(pruner: Any, eyes: Eyes, pictures: Sequence[Picture]) -> Seen:
    """The tower up to its feature layer, with what the stage asks of it."""
    tower = eyes.tower
    last = feature_layer(len(tower.encoder.layers), eyes.select_layer)
    like = next(tower.parameters())
    pixels = torch.cat([p.pixels for p in pictures]).to(like.device, like.dtype)
    asked = pruner.plan_for(pictures[0].shape).encoder.probes or (last,)
    if max(asked) > last:
        raise UnsupportedError(
            f"method {pruner.method!r} asks for tower layer {max(asked)}, and vision_feature_layer={eyes.select_layer} reads "
            f"the output of layer {last}: leave vision_feature_layer out"
        )
    probes = {i: Probe() for i in asked}
    hidden = run_layers(tower, embed(tower, pixels), 0, last, probes)
    return Seen(hidden, last, tower.encoder.layers[0].self_attn.num_heads, probes)


def reduce(pruner: Any, eyes: Eyes, seen: Seen, pictures: Sequence[Picture], images: list[int], total: int) -> Encoded:
    """`encode` from what the tower has made of the pictures."""
    shape = pictures[0].shape
    stage = pruner.plan_for(shape).encoder
    view = EncoderView(seen, shape.cls, stage.keep, Settings(pruner.chunk, pruner.fused))
    selection, sequence = stage.select(view, stage.kept), None
    value = gather_rows(seen.hidden, selection.index) if selection.value is None else selection.value
    value = value.reshape(len(pictures), -1, value.shape[-1])
    if shape.units > 1 or pruner.record:
        ids, sequence, order = line_up(selection, stage, shape, pictures, seen.hidden.shape[1])
        value = value if order is None else gather_rows(value, order)
        if pruner.record:
            joined = join_units(selection, shape.units, seen.hidden.shape[1])
            record(pruner.report, images, total, ids, joined, value, sequence)
    return Encoded(eyes.projector(value), sequence if pruner.record else None, seen.hidden)


def line_up(
    selection: Selection, stage: EncoderStage, shape: VisualShape, pictures: Sequence[Picture], rows: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, and the LLM's order of the rows that the units keep.

    Args:
        selection: tensors with a leading axis of I * U; rows: R, of each unit before the stage.

    Returns:
        (ids [I, U * R] before the stage; [I, U * keep] after it, in order; [I, U * keep] long, that order, or None
        where it is unit after unit).
    """
    images, units = len(pictures), shape.units
    ids = tower_ids(units, shape.patches, shape.cls, selection.index.device).expand(images, -1)
    sequence = ids.reshape(-1, rows).gather(1, selection.index).view(images, units, -1)
    if units == 1:
        return ids, sequence.flatten(1), None
    dominant = sequence.shape[2] if selection.dominant is None else selection.dominant
    grids = None if stage.order == "unit" else grids_of(pictures)
    order = sequence_order(sequence, dominant, shape.patches, grids)
    return ids, sequence.flatten(1).gather(1, order), order


def record(
    report: Any, images: list[int], total: int, ids: Tensor, selection: Selection, value: Tensor, sequence: Tensor
) -> None:
    """Write the stage's outcome into the report; the first picture of a batch starts it afresh."""
    if not report.stages or images[0] == 0:
        report.stages = [StageReport.empty("encoder", total)]
    report.stages[0].grow(total)
    report.stages[0].record(images, ids, selection, value, sequence)
