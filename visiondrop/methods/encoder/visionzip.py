"""VisionZip (Yang et al., CVPR 2025): after the encoder, [CLS]'s favourites stay and the rest merge into a few tokens.

Source: `JIA-Lab-research/VisionZip`, the LLaVA code (docs/methods/visionzip.md): the same encoder stage as VisionDrop's, which
copied it, and nothing in the decoder.  `dominant` counts [CLS]; a contextual token is reference + mean.
Budgets: 27 dominant to 5 contextual (54 + 10 is given for 64; 162 + 30, 108 + 20 and 27 + 5 follow).
"""

from dataclasses import dataclass

from ...errors import VisionDropError
from ...plans.plan import EncoderStage, Kept, Plan
from ...plans.schedule import nearest, per_unit
from ...plans.shape import VisualShape
from ..early import CutsEarly
from ..options import integer, option
from ..registry import register
from ..staged.visiondrop import select_unit

CONTEXTUAL_SHARE = 5 / 32


@register("visionzip")
@dataclass(frozen=True, kw_only=True)
class VisionZip(CutsEarly):
    """Every unit (crop, frame) sends `dominant` + `contextual` tokens to the decoder."""

    dominant: int | None = option(
        None, "tokens per unit kept as they are, [CLS] included; with `contextual`, instead of a budget", amount=True
    )
    contextual: int | None = option(None, "merged tokens per unit", amount=True)

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One encoder stage.  None: budget out of reach."""
        self.one_way(tokens)
        if tokens is None:
            if self.dominant is None or self.contextual is None:
                raise VisionDropError(
                    f"dominant={self.dominant}, contextual={self.contextual}: give both, e.g. dominant=54, contextual=10"
                )
            dominant = integer("dominant", self.dominant, 1, shape.patches)
            contextual = integer("contextual", self.contextual, 0, shape.patches - dominant)
        else:
            total = per_unit(tokens, shape)
            if total is None:
                return None
            contextual = nearest(total * CONTEXTUAL_SHARE)
            dominant = total - contextual
        stage = EncoderStage(Kept(dominant, contextual), select_unit, order="canvas", scoring="cls")
        return self.cut_early(Plan("visionzip", shape, encoder=stage))
