"""VisionDrop's first stage alone, at the whole budget: what can be had of it where decoder layers all see equal lengths.

Not a published method: an ablation with a name of its own, so that no number of it is taken for VisionDrop's.  The same
selection and merging as VisionDrop's encoder stage (docs/methods/visiondrop.md), and no stage in the decoder.
"""

from dataclasses import dataclass

from ...plans.plan import EncoderStage, Kept, Plan
from ...plans.schedule import per_unit, split
from ...plans.shape import VisualShape
from ..method import Method
from ..options import option
from ..registry import register
from .visiondrop import DOMINANT_RATIO, select_unit


@register("visiondrop-encoder")
@dataclass(frozen=True, kw_only=True)
class FirstStage(Method):
    """Every unit (crop, frame) sends T tokens to the decoder, T = budget / number of units."""

    dominant_ratio: float = option(DOMINANT_RATIO, "dominant share of the tokens; the rest are merged", zero=False)

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One encoder stage.  None: budget out of reach."""
        self.one_way(tokens)
        total = per_unit(tokens, shape)
        if total is None or split(total, self.dominant_ratio)[0] < 1:
            return None
        stage = EncoderStage(Kept(*split(total, self.dominant_ratio)), select_unit, order="canvas", scoring="cls")
        return Plan("visiondrop-encoder", shape, encoder=stage)
