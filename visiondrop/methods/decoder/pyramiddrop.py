"""PyramidDrop (Xing et al., CVPR 2025): visual tokens are dropped in stages, by what the prompt's last token looks at.

Source: `Cooperx521/PyramidDrop` (docs/methods/pyramiddrop.md): before a stage's layer r runs, the last prompt token's attention
row of layer r itself (its norm, q, k; rotary at current positions; softmax over the whole sequence; mean over heads)
ranks the visual tokens; stage s keeps int(N * ratio_s) of the original N; positions are renumbered; nothing merges.
Budgets as the author answered (PyramidDrop#29): layers [2, 8, 16] of 32, ratios 1, λ, λ², λ³ with the wanted mean.
`score="visual"` is Fig. 2 of the VisionDrop paper: same layers and ratios, VisionDrop's stage score.
"""

from dataclasses import dataclass
from functools import partial

from ...errors import VisionDropError
from ...ops.scores import SCORE_MASKS
from ...ops.selection import Selection, top_k
from ...plans.plan import Kept, Plan, Stage, View
from ...plans.schedule import check_layers, decay, scale_layers, segment_lengths
from ...plans.shape import VisualShape
from ..method import SCORES, InDecoder, check_score, one_way
from ..options import option, spell
from ..registry import register

LAYERS = (2, 8, 16)  # of 32; the author's list for small budgets
PRESETS = {  # (layers of 32, λ), see configs/methods/pyramiddrop.yaml
    "default": ((8, 16, 24), (0.5,)),
    "author-64": ((2, 8, 16), (0.19,)),
}


@register("pyramiddrop")
@dataclass(frozen=True, kw_only=True)
class PyramidDrop(InDecoder):
    """Counts int(N), int(N λ), int(N λ²) … with λ solved so that the mean over layers is `tokens`."""

    score: str = option("text", "the prompt's last token, or attention received from visual tokens", allowed=SCORES)
    layers: tuple[int, ...] | None = option(
        None, "stage layers of this stack; default 2, 8, 16 of 32, scaled to its depth"
    )
    ratio: tuple[float, ...] | None = option(
        None, "λ, or the share of N each stage keeps (0.5,0.25,0.125), instead of a budget", amount=True
    )
    preset: str | None = option(
        None, "default: layers 8, 16, 24, λ = 0.5 (mean 270 of 576); instead of a budget", allowed=PRESETS, amount=True
    )
    score_mask: str = option("causal", "for score=visual, see `scores.received`", allowed=SCORE_MASKS)

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """A stage per layer; another number of visual tokens than nominal keeps the same fractions.  None: out of reach."""
        self.one_way(tokens)
        if self.preset is not None:
            one_way(None, preset=self.preset, layers=self.layers)
        check_score(self.score, self.score_mask)
        reference, factor = (LAYERS, self.ratio) if self.preset is None else PRESETS[self.preset]
        at = scale_layers(reference, shape.layers) if self.layers is None else check_layers(self.layers, shape.layers)
        if factor is None:
            kept = solve(at, shape.layers, tokens / shape.nominal)
            if kept is None:
                return None
        else:
            kept = tuple(factor[0] ** s for s in range(1, len(at) + 1)) if len(factor) == 1 else factor
            if len(kept) != len(at):
                raise VisionDropError(
                    f"ratio={spell(factor)}: give one number, or one for each of the {len(at)} stages at {list(at)}"
                )
        text = self.score == "text"
        pick = by_text if text else partial(by_image, mask=self.score_mask)
        stages = tuple(
            Stage(layer, Kept(int(shape.tokens * share)), pick, layer, "row" if text else "visual")
            for layer, share in zip(at, kept)
        )
        return self.placed(Plan("pyramiddrop", shape, stages=stages, text_guided=text))


def solve(layers: tuple[int, ...], depth: int, fraction: float) -> tuple[float, ...] | None:
    """Shares λ, λ², … after the stages at `layers`, of mean `fraction` over `depth` layers; None if impossible."""
    weights = segment_lengths(layers, depth)
    if not weights[0] <= fraction * depth <= depth:
        return None
    # Rounded far below a token, so that λ = 1/2 is not missed by the last bit and floored a token too low.
    factor = round(decay(weights, 1.0, fraction * depth), 12)
    return tuple(factor**s for s in range(1, len(weights)))


def by_text(view: View, kept: Kept) -> Selection:
    """The `kept.dominant` slots the prompt's last token looks at most [I, n] float32, ascending; states unchanged."""
    scores = view.from_last_token()
    return Selection(index=top_k(scores, kept.dominant), scores=scores)


def by_image(view: View, kept: Kept, mask: str = "causal") -> Selection:
    """The `kept.dominant` slots that receive most from visual queries [I, n] float32, ascending; states unchanged."""
    scores = view.received(mask)
    return Selection(index=top_k(scores, kept.dominant), scores=scores)
