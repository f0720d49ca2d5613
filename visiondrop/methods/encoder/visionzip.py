"""VisionZip (Yang et al., CVPR 2025): after the encoder, [CLS]'s favourites stay and the rest merge into a few tokens.

Source: `JIA-Lab-research/VisionZip`, the LLaVA code (docs/methods/visionzip.md): the same encoder stage as VisionDrop's, which
copied it, and nothing in the decoder.  `dominant` counts [CLS]; a contextual token is reference + mean.
Budgets: 27 dominant to 5 contextual (54 + 10 is given for 64; 162 + 30, 108 + 20 and 27 + 5 follow).
"""

from ...errors import VisionDropError
from ...plans.plan import EncoderStage, Plan
from ...plans.schedule import nearest, per_unit
from ...plans.shape import VisualShape
from ..options import amounts, integer
from ..registry import register
from ..staged.visiondrop import encoder_selector

CONTEXTUAL_SHARE = 5 / 32


@register("visionzip")
def plan(
    tokens: int | None,
    shape: VisualShape,
    *,
    dominant: int | str | None = None,
    contextual: int | str | None = None,
) -> Plan | None:
    """Every unit (crop, frame) sends `dominant` + `contextual` tokens to the decoder.

    Args:
        dominant: tokens per unit kept as they are, [CLS] included; contextual: merged ones.  Both or neither; with
            them no budget is given.

    Returns:
        The plan, or None where the budget cannot be met.
    """
    amounts(tokens, dominant=dominant, contextual=contextual)
    if tokens is None:
        if dominant is None or contextual is None:
            raise VisionDropError(
                f"dominant={dominant}, contextual={contextual}: give both, e.g. dominant=54, contextual=10"
            )
        kept = integer("dominant", dominant, 1, shape.patches)
        merged = integer("contextual", contextual, 0, shape.patches - kept)
    else:
        total = per_unit(tokens, shape)
        if total is None:
            return None
        merged = nearest(total * CONTEXTUAL_SHARE)
        kept = total - merged
    stage = EncoderStage(kept + merged, encoder_selector(kept, merged), kept, merged, order="canvas")
    return Plan("visionzip", shape, encoder=stage)
