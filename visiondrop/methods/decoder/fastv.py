"""FastV (Chen et al., ECCV 2024): after K full layers, keep the visual tokens the prompt's last token looks at.

Source: `pkunlp-icler/FastV`, variant "static cache" (docs/methods/fastv.md): scores are one row of layer K-1's own attention
(post-softmax, mean over heads), survivors keep their original positions, nothing is ranked again while decoding.
The paper's text averages over all queries; the code, followed here, takes the last token only.
Budgets by (K * N + (L - K) * keep) / L with K = 2 of 32 layers: keep 166 / 98 / 30 of 576 for 192 / 128 / 64.
"""

from dataclasses import dataclass

from ...ops.selection import Selection, top_k
from ...plans.plan import Kept, Plan, Stage, View
from ...plans.schedule import nearest, scale_layers
from ...plans.shape import VisualShape
from ..method import InDecoder, one_way
from ..options import integer, option
from ..registry import register

FULL_LAYERS = 2  # K, of 32
PRESETS = {  # (K of 32 layers, kept of 576 tokens) of scripts and published rows, see configs/methods/fastv.yaml
    "keep-72": (2, 72),
    "keep-144": (2, 144),
    "keep-288": (2, 288),
    "keep-432": (2, 432),
    "k3-keep-144": (3, 144),
    "k3-keep-288": (3, 288),
}
PRESET_TOKENS = 576


@register("fastv")
@dataclass(frozen=True, kw_only=True)
class FastV(InDecoder):
    """`keep` visual tokens from layer `k` on, all of them before."""

    k: int | None = option(
        None, f"layers of this stack that see every visual token; default {FULL_LAYERS} of 32, scaled to its depth"
    )
    keep: int | None = option(None, "tokens kept, instead of a budget", amount=True)
    preset: str | None = option(
        None, "K (scaled to the depth) and the share kept, instead of a budget", allowed=PRESETS, amount=True
    )

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One stage; another number of visual tokens than nominal keeps the same fraction.  None: budget out of reach."""
        self.one_way(tokens)
        if self.preset is not None:
            one_way(None, preset=self.preset, k=self.k)
        full, share = PRESETS.get(self.preset, (FULL_LAYERS, None))
        full = scale_layers((full,), shape.layers)[0] if self.k is None else integer("k", self.k, 1, shape.layers - 1)
        if self.keep is not None:
            count = integer("keep", self.keep, 0, shape.tokens)
        elif self.preset is not None:
            count = nearest(share * shape.tokens / PRESET_TOKENS)
        else:
            fraction = (shape.layers * tokens / shape.nominal - full) / (shape.layers - full)
            if not 0 <= fraction <= 1:
                return None
            count = nearest(fraction * shape.tokens)
        stage = Stage(full, Kept(count), select, probe=full - 1, scoring="row")
        return self.placed(Plan("fastv", shape, stages=(stage,), positions="original", text_guided=True))


def select(view: View, kept: Kept) -> Selection:
    """The `kept.dominant` slots with the largest score [I, n], ascending; states unchanged."""
    scores = view.from_last_token()
    return Selection(index=top_k(scores, kept.dominant), scores=scores)
