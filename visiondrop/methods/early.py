"""Cutting inside the vision tower, for methods whose encoder stage ranks patches by [CLS]: an option, off by default.

FlowCut's place with a fixed number of rows: the attention of [CLS] in a middle layer says which patches the later layers
still see, and the method's own stage chooses among those.  The tower is most of a pruned model's time to the first token
(docs/speed.md).  Which cuts cost answers, and how many, was measured on the testbed: docs/findings.md.
"""

from dataclasses import dataclass, replace
from typing import Any

from ..errors import VisionDropError
from ..ops.selection import Selection, top_k, with_cls
from ..plans.plan import Kept, Plan, TowerStage, View
from .method import Method
from .options import integer, option, spell


def read_cuts(name: str, value: Any) -> tuple[tuple[int, int], ...]:
    """((layer, patches), ...) from pairs or from text such as "12:288" or "8:384,14:192"."""
    try:
        items = value.split(",") if isinstance(value, str) else value
        pairs = [item.split(":") if isinstance(item, str) else item for item in items]
        return tuple((integer(name, layer, 0), integer(name, patches, 1)) for layer, patches in pairs)
    except (TypeError, ValueError):
        raise VisionDropError(
            f"{name}={value!r}: give tower layers and the patches left after each, e.g. {name}=12:288"
        ) from None


@dataclass(frozen=True, kw_only=True)
class CutsEarly(Method):
    """A method that may cut inside the tower before its encoder stage chooses."""

    tower_stages: tuple[tuple[int, int], ...] | None = option(
        None,
        "LAYER:PATCHES, cut inside the vision tower: after this 0-based layer each unit keeps this many patches",
        read=read_cuts,
    )

    def cut_early(self, plan: Plan) -> Plan:
        """`plan` with the cuts that are asked for.

        Raises:
            VisionDropError: no encoder stage, a tower that cannot be cut, or fewer patches than the encoder stage keeps.
        """
        if self.tower_stages is None:
            return plan
        shape, stage, told = plan.shape, plan.encoder, f"tower_stages={spell(self.tower_stages)}"
        if stage is None:
            raise VisionDropError(
                f"{told}: cuts inside the tower need an encoder stage behind it, and this plan has none"
            )
        if shape.source == "video":
            raise VisionDropError(
                f"{told}: this tower attends over time, from each patch to the same patch of all frames, and cannot lose some "
                "of one frame: leave tower_stages out"
            )
        layers, counts = zip(*self.tower_stages)
        if list(layers) != sorted(set(layers)) or layers[-1] >= shape.feature_layer:
            raise VisionDropError(
                f"{told}: allowed are ascending layers in 0 … {shape.feature_layer - 1}, before the one whose output is read"
            )
        least = stage.keep - int(shape.cls and stage.order != "raster")  # [CLS] is one of those it keeps, or not
        if list(counts) != sorted(counts, reverse=True) or not least <= counts[-1] <= counts[0] <= shape.patches:
            raise VisionDropError(
                f"{told}: allowed are falling numbers of patches from {shape.patches} to {least}, which the encoder stage keeps"
            )
        tower = tuple(
            TowerStage(layer, Kept(count + int(shape.cls)), select, probes=(layer,))
            for layer, count in self.tower_stages
        )
        return replace(plan, tower=tower)


def select(view: View, kept: Kept) -> Selection:
    """[CLS] and the patches it attends to most in the layer that has just run, in raster order."""
    scores = view.score()  # [U, n]
    rows = with_cls(top_k(scores, kept.dominant - int(view.cls)), view.cls)
    return Selection(index=rows, dominant=rows.shape[1], scores=scores)
