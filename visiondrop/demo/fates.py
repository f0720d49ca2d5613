"""What has become of every patch after each stage: kept, merged into which token, or dropped.

A report says it stage by stage; here the stages are followed through, so that a patch that was merged early and whose token
was merged again later is found with the last of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..ops.report import Report, StageReport

INPUT, TOWER, AFTER_ENCODER = -2000, -1000, -1  # places before the decoder's layers, see `Step.order`


def place_name(order: int) -> str:
    """A place in words."""
    if order >= 0:
        return f"on entry of layer {order}"
    if order == AFTER_ENCODER:
        return "after the encoder"
    return "the input" if order == INPUT else f"after tower layer {order - TOWER}"


@dataclass(frozen=True)
class Step:
    """One picture after one stage.

    Attributes:
        layer: "tower 7" (behind a layer of the vision tower), "encoder" (behind all of it), or the decoder layer on whose
            entry the stage acts.
        stands_for: {id of a token that goes on: patches that were merged into it, itself left out}, in sequence order.
        dominant, contextual: how many tokens of either kind the stage returned; [CLS] counts as dominant.
    """

    layer: int | str
    stands_for: dict[int, tuple[int, ...]]
    dominant: int
    contextual: int

    @property
    def place(self) -> str:
        """Where the stage stands, in words."""
        return place_name(self.order)

    @property
    def order(self) -> int:
        """Stages of several methods sorted by this stand in the order of the model's layers; see `place_name`."""
        if isinstance(self.layer, int):
            return self.layer
        return AFTER_ENCODER if self.layer == "encoder" else TOWER + int(self.layer.split()[1])

    @property
    def title(self) -> str:
        """Place and counts, in words."""
        name = self.layer if isinstance(self.layer, str) else f"layer {self.layer}"
        cls = " with [CLS]" if any(token < 0 for token in self.stands_for) else ""
        return f"{name}: {self.dominant}{cls} + {self.contextual} merged"


def follow(report: Report, image: int = 0) -> list[Step]:
    """The stages of the last prefill, one after the other.

    Args:
        report: of a handle applied with report=True; image: which image of the batch.
    """
    steps: list[Step] = []
    named = [(f"tower {stage.layer}", stage) for stage in report.tower]
    for layer, stage in [*named, *((stage.layer, stage) for stage in report.stages)]:
        steps.append(_next(steps[-1].stands_for if steps else {}, layer, stage, image))
    return steps


def _next(before: dict[int, tuple[int, ...]], layer: int | str, stage: StageReport, image: int) -> Step:
    dominant, reference = _ids(stage.dominant[image]), _ids(stage.reference[image])
    joined: dict[int, list[int]] = {}
    for token, at in zip(_ids(stage.merged[image]), _ids(stage.assignment[image])):
        if at >= 0:
            joined.setdefault(reference[at], []).extend((token, *before.get(token, ())))
    kept = stage.kept(image).tolist()
    after = {token: (*before.get(token, ()), *joined.get(token, ())) for token in kept}
    return Step(layer, after, len(dominant), len(reference))


def _ids(tensor) -> list[int]:
    return [] if tensor is None else tensor.tolist()


def standing_for_others(steps: Sequence[Step]) -> list[int]:
    """Ids of all tokens into which something is merged at some stage, ascending: what needs a colour."""
    return sorted({token for step in steps for token, members in step.stands_for.items() if members})
