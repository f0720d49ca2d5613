"""VisionDrop (Xu et al., AAAI 2026): dominant tokens by visual-only attention, the rest merged, in stages.

After the encoder by [CLS] attention, then before decoder layers at 1/4, 1/2 and 3/4 of the depth by the attention
visual tokens receive from visual queries, scored with the next layer's own projections.  Follows the released code
where it differs from the paper (merged token = reference + mean, causal mask in the score; all points: docs/methods/visiondrop.md).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ...errors import VisionDropError
from ...ops.merge import merge as merge_tokens
from ...ops.scores import SCORE_MASKS
from ...ops.selection import Selection, divide, top_k, with_cls
from ...plans.plan import EncoderStage, Kept, Plan, Stage, View
from ...plans.schedule import check_layers, geometric, nearest, scale_layers, segment_lengths, split
from ...plans.shape import VisualShape
from ..early import CutsEarly
from ..method import SCORES, InDecoder, check_score
from ..options import option
from ..registry import register

LAYERS = (8, 16, 24)  # of 32
FIRST_STAGE = {"image": 1.5, "video": 3.0}  # budgets kept by the first stage (paper, Implementation Details)
DOMINANT_RATIO = 7 / 8  # reproduces the published pairs 42+6, 30+5, 22+4, 16+3


@register("visiondrop")
@dataclass(frozen=True, kw_only=True)
class VisionDrop(CutsEarly, InDecoder):
    """Counts fall geometrically from the first stage so that their mean over layers is `tokens`."""

    score: str = option("visual", "in the decoder's stages: visual, or text (last prompt token)", allowed=SCORES)
    merge: bool = option(True, "off = keep as many dominant tokens instead, so the budget holds")
    encoder: bool = option(True, "off = no encoder stage; all tokens enter the decoder")
    encoder_ratio: float | None = option(
        None, "share of the patches kept by the encoder stage; default 1.5 budgets (3 for video)", zero=False
    )
    dominant_ratio: float = option(DOMINANT_RATIO, "dominant share of each stage's tokens", zero=False)
    layers: tuple[int, ...] | None = option(
        None, "stage layers of this stack; default 8, 16, 24 of 32, scaled to its depth"
    )
    score_mask: str = option("causal", "see `scores.received`; the official code is causal", allowed=SCORE_MASKS)

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """An encoder stage and three in the decoder.  None: budget out of reach."""
        if tokens is None:
            raise VisionDropError("method 'visiondrop' needs a budget: tokens=64, or --tokens 64")
        check_score(self.score, self.score_mask)
        share = self.dominant_ratio if self.merge else 1.0
        at = scale_layers(LAYERS, shape.layers)
        if self.layers is not None:
            at = check_layers(self.layers, shape.layers)
        lengths = segment_lengths(at, shape.layers)
        scale = shape.scale if self.encoder else shape.tokens / shape.nominal
        # An image of another size than the budget is stated for gets the nearest mean that whole counts can have.
        step = 1 if scale == 1 else math.gcd(*lengths)
        total = step * nearest(tokens * scale * shape.layers / step)
        per_unit = self._first_stage(tokens, shape)
        first = per_unit * shape.units if self.encoder else shape.tokens
        least = next(
            n for n in range(1, shape.patches + 1) if split(n, share)[0] >= 1
        )  # a stage keeps a dominant token
        if not least <= per_unit <= shape.patches:
            return None
        counts = geometric(lengths, first, total, least)
        if counts is None:
            return None
        first_stage = None
        if self.encoder:
            first_stage = EncoderStage(Kept(*split(per_unit, share)), select_unit, order="canvas", scoring="cls")
        text = self.score == "text"
        pick = by_text if text else partial(by_image, mask=self.score_mask)
        stages = tuple(
            Stage(layer, Kept(*split(n, share)), pick, layer, "row" if text else "visual")
            for layer, n in zip(at, counts[1:])
        )
        plan = Plan("visiondrop", shape, encoder=first_stage, stages=stages, text_guided=text)
        return self.placed(self.cut_early(plan))

    def _first_stage(self, tokens: int, shape: VisualShape) -> int:
        """Tokens per unit that enter the decoder."""
        if not self.encoder:
            return shape.patches
        if self.encoder_ratio is not None:
            return nearest(self.encoder_ratio * shape.patches)
        return nearest(FIRST_STAGE[shape.kind] * tokens / shape.nominal_units)


def select_unit(view: View, kept: Kept) -> Selection:
    """[CLS] and the dominant - 1 best patches (without [CLS]: the `dominant` best), the rest merged by keys."""
    scores = view.score()  # [U, n]
    rows = with_cls(top_k(scores, kept.dominant - int(view.cls)), view.cls)
    return reduce(view.hidden, view.metric, rows, kept.contextual, scores)


def by_image(view: View, kept: Kept, mask: str = "causal") -> Selection:
    """The tokens that receive most attention from visual queries, the rest merged by the mean key after rotation."""
    return _by(view.received(mask), view, kept)


def by_text(view: View, kept: Kept) -> Selection:
    """The tokens the prompt's last token looks at most, the rest merged by the mean key after rotation."""
    return _by(view.from_last_token(), view, kept)


def _by(scores: Tensor, view, kept: Kept) -> Selection:
    dominant, rest = divide(scores, kept.dominant)
    return reduce(view.hidden, view.keys, dominant, kept.contextual, scores, rest)


def reduce(
    hidden: Tensor,
    metric: Callable[[], Tensor],
    dominant: Tensor,
    contextual: int,
    scores: Tensor,
    rest: Tensor | None = None,
) -> Selection:
    """Keep `dominant` [I, K], merge the rest into `contextual` tokens; `metric` is called only if needed."""
    if contextual == 0:
        return Selection(index=dominant, dominant=dominant.shape[1], scores=scores)
    selection = merge_tokens(hidden, metric(), dominant, contextual, rest)
    selection.scores = scores
    return selection
