"""PyramidDrop (Xing et al., CVPR 2025): visual tokens are dropped in stages, by what the prompt's last token looks at.

Source: `Cooperx521/PyramidDrop` (docs/methods/pyramiddrop.md): before a stage's layer r runs, the last prompt token's attention
row of layer r itself (its norm, q, k; rotary at current positions; softmax over the whole sequence; mean over heads)
ranks the visual tokens; stage s keeps int(N * ratio_s) of the original N; positions are renumbered; nothing merges.
Budgets as the author answered (PyramidDrop#29): layers [2, 8, 16] of 32, ratios 1, λ, λ², λ³ with the wanted mean.
`score="visual"` is Fig. 2 of the VisionDrop paper: same layers and ratios, VisionDrop's stage score.
"""

from ...errors import VisionDropError
from ...ops.scores import SCORE_MASKS
from ...ops.selection import Selection, top_k
from ...plans.plan import Plan, Stage
from ...plans.schedule import check_layers, decay, scale_layers, segment_lengths
from ...plans.shape import VisualShape
from ..options import amounts, integers, preset_of, score_rule, shares
from ..registry import register

LAYERS = (2, 8, 16)  # of 32; the author's list for small budgets
PRESETS = {  # (layers of 32, λ), see configs/methods/pyramiddrop.yaml
    "default": ((8, 16, 24), 0.5),
    "author-64": ((2, 8, 16), 0.19),
}


@register("pyramiddrop")
def plan(
    tokens: int | None,
    shape: VisualShape,
    *,
    score: str = "text",
    layers: str | tuple[int, ...] | None = None,
    ratio: float | str | tuple[float, ...] | None = None,
    preset: str | None = None,
    score_mask: str = "causal",
) -> Plan | None:
    """Counts int(N), int(N λ), int(N λ²) … with λ solved so that the mean over layers is `tokens`.

    Args:
        score: "text" (the prompt's last token), or "visual" (attention received from visual tokens).
        layers: stage layers of *this* stack; default 2, 8, 16 of 32, scaled to its depth.
        ratio: λ, or the share of N each stage keeps ("0.5,0.25,0.125"), instead of a budget.
        preset: "default" (layers 8, 16, 24, λ = 0.5: mean 270 of 576) or "author-64", instead of a budget.
        score_mask: for score="visual", see `scores.received`.

    Returns:
        The plan; another number of visual tokens than nominal keeps the same fractions.  None: budget out of reach.
    """
    amounts(tokens, preset=preset, ratio=ratio)
    if preset is not None:
        amounts(None, preset=preset, layers=layers)
    score_rule(score, score_mask, SCORE_MASKS)
    reference, factor = (LAYERS, ratio) if preset is None else preset_of(preset, PRESETS)
    at = (
        scale_layers(reference, shape.layers)
        if layers is None
        else check_layers(integers("layers", layers), shape.layers)
    )
    if factor is None:
        kept = solve(at, shape.layers, tokens / shape.nominal)
        if kept is None:
            return None
    else:
        kept = shares("ratio", factor)
        kept = tuple(kept[0] ** s for s in range(1, len(at) + 1)) if len(kept) == 1 else kept
        if len(kept) != len(at):
            raise VisionDropError(
                f"ratio={factor!r}: give one number, or one for each of the {len(at)} stages at {list(at)}"
            )
    pick = selector(score, score_mask)
    stages = tuple(
        Stage(layer, count, pick, layer, "row" if score == "text" else "visual", count)
        for layer, count in zip(at, (int(shape.tokens * share) for share in kept))
    )
    return Plan("pyramiddrop", shape, stages=stages, text_guided=score == "text")


def solve(layers: tuple[int, ...], depth: int, fraction: float) -> tuple[float, ...] | None:
    """Shares λ, λ², … after the stages at `layers`, of mean `fraction` over `depth` layers; None if impossible."""
    weights = segment_lengths(layers, depth)
    if not weights[0] <= fraction * depth <= depth:
        return None
    # Rounded far below a token, so that λ = 1/2 is not missed by the last bit and floored a token too low.
    factor = round(decay(weights, 1.0, fraction * depth), 12)
    return tuple(factor**s for s in range(1, len(weights)))


def selector(score: str, score_mask: str):
    """The `view.keep` slots with the largest score [I, n] float32, ascending; states unchanged."""

    def select(view) -> Selection:
        scores = view.from_last_token() if score == "text" else view.received(score_mask)
        return Selection(index=top_k(scores, view.keep), scores=scores)

    return select
