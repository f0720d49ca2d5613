"""VisionDrop (Xu et al., AAAI 2026): dominant tokens by visual-only attention, the rest merged, in stages.

After the encoder by [CLS] attention, then before decoder layers at 1/4, 1/2 and 3/4 of the depth by the attention
visual tokens receive from visual queries, scored with the next layer's own projections.  Follows the released code
where it differs from the paper (merged token = reference + mean, causal mask in the score; all points: docs/methods/visiondrop.md).
"""

import math

from torch import Tensor

from ...errors import VisionDropError
from ...ops.merge import merge as merge_tokens
from ...ops.scores import SCORE_MASKS
from ...ops.selection import Selection, top_k, with_cls
from ...plans.plan import EncoderStage, Plan, Stage
from ...plans.schedule import check_layers, geometric, nearest, scale_layers, segment_lengths, split
from ...plans.shape import VisualShape
from ..options import fraction, integers, on_off, score_rule
from ..registry import register

LAYERS = (8, 16, 24)  # of 32
FIRST_STAGE = {"image": 1.5, "video": 3.0}  # budgets kept by the first stage (paper, Implementation Details)
DOMINANT_RATIO = 7 / 8  # reproduces the published pairs 42+6, 30+5, 22+4, 16+3


@register("visiondrop")
def plan(
    tokens: int | None,
    shape: VisualShape,
    *,
    score: str = "visual",
    merge: str | bool = "on",
    encoder: str | bool = "on",
    encoder_ratio: float | None = None,
    dominant_ratio: float = DOMINANT_RATIO,
    layers: str | tuple[int, ...] | None = None,
    score_mask: str = "causal",
) -> Plan | None:
    """Counts fall geometrically from the first stage so that their mean over layers is `tokens`.

    Args:
        score: "visual", or "text" (last prompt token) in the decoder's stages.
        merge: off = keep as many dominant tokens instead, so the budget holds.
        encoder: off = no encoder stage; all tokens enter the decoder.
        encoder_ratio: share of the patches kept by the encoder stage; default 1.5 budgets (3 for video).
        dominant_ratio: dominant share of each stage's tokens.
        layers: stage layers of *this* stack; default 8, 16, 24 of 32, scaled to its depth.
        score_mask: see `scores.received`; the official code is "causal".

    Returns:
        The plan, or None where the budget cannot be met.
    """
    if tokens is None:
        raise VisionDropError("method 'visiondrop' needs a budget: tokens=64, or --tokens 64")
    score_rule(score, score_mask, SCORE_MASKS)
    merging, encoding = on_off("merge", merge), on_off("encoder", encoder)
    share = fraction("dominant_ratio", dominant_ratio) if merging else 1.0
    at = scale_layers(LAYERS, shape.layers)
    if layers is not None:
        at = check_layers(integers("layers", layers), shape.layers)

    lengths = segment_lengths(at, shape.layers)
    scale = shape.scale if encoding else shape.tokens / shape.nominal
    # An image of another size than the budget is stated for gets the nearest mean that whole counts can have.
    step = 1 if scale == 1 else math.gcd(*lengths)
    total = step * nearest(tokens * scale * shape.layers / step)
    per_unit = shape.patches if not encoding else _encoder_tokens(tokens, shape, encoder_ratio)
    first = per_unit * shape.units if encoding else shape.tokens
    least = next(n for n in range(1, shape.patches + 1) if split(n, share)[0] >= 1)  # a stage keeps a dominant token
    if not least <= per_unit <= shape.patches:
        return None
    counts = geometric(lengths, first, total, least)
    if counts is None:
        return None
    pairs = [split(n, share) for n in counts]

    first_stage = None
    if encoding:
        dominant, contextual = split(per_unit, share)
        first_stage = EncoderStage(
            per_unit, encoder_selector(dominant, contextual), dominant, contextual, order="canvas"
        )
    stages = tuple(
        Stage(layer, d + c, selector(d, c, score, score_mask), layer, "visual" if score == "visual" else "row", d, c)
        for layer, (d, c) in zip(at, pairs[1:])
    )
    return Plan("visiondrop", shape, encoder=first_stage, stages=stages, text_guided=score == "text")


def _encoder_tokens(tokens: int, shape: VisualShape, ratio: float | None) -> int:
    """Tokens that the encoder stage keeps of every unit: a share of its patches, or the paper's number of budgets."""
    if ratio is not None:
        return nearest(fraction("encoder_ratio", ratio) * shape.patches)
    return nearest(FIRST_STAGE[shape.kind] * tokens / shape.nominal_units)


def encoder_selector(dominant: int, contextual: int):
    """[CLS] and the dominant - 1 best patches (without [CLS]: the `dominant` best), the rest merged by keys."""

    def select(view) -> Selection:
        scores = view.score()  # [U, n]
        rows = with_cls(top_k(scores, dominant - int(view.cls)), view.cls)
        selection = reduce(view.hidden, view.metric, rows, contextual)
        selection.scores = scores
        return selection

    return select


def selector(dominant: int, contextual: int, score: str, score_mask: str):
    """The `dominant` best of the visual tokens by `score`, the rest merged by the mean key after rotation."""

    def select(view) -> Selection:
        scores = view.received(score_mask) if score == "visual" else view.from_last_token()
        selection = reduce(view.hidden, view.keys, top_k(scores, dominant), contextual)
        selection.scores = scores
        return selection

    return select


def reduce(hidden: Tensor, metric, dominant: Tensor, contextual: int) -> Selection:
    """Keep `dominant` [I, K], merge the rest into `contextual` tokens; `metric` is called only if needed."""
    if contextual == 0:
        return Selection(index=dominant, dominant=dominant.shape[1])
    return merge_tokens(hidden, metric(), dominant, contextual)
