"""FastV (Chen et al., ECCV 2024): after K full layers, keep the visual tokens the prompt's last token looks at.

Source: `pkunlp-icler/FastV`, variant "static cache" (docs/methods/fastv.md): scores are one row of layer K-1's own attention
(post-softmax, mean over heads), survivors keep their original positions, nothing is ranked again while decoding.
The paper's text averages over all queries; the code, followed here, takes the last token only.
Budgets by (K * N + (L - K) * keep) / L with K = 2 of 32 layers: keep 166 / 98 / 30 of 576 for 192 / 128 / 64.
"""

from ...ops.selection import Selection, top_k
from ...plans.plan import Plan, Stage
from ...plans.schedule import nearest, scale_layers
from ...plans.shape import VisualShape
from ..options import amounts, integer, preset_of
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
def plan(
    tokens: int | None,
    shape: VisualShape,
    *,
    k: int | str | None = None,
    keep: int | str | None = None,
    preset: str | None = None,
) -> Plan | None:
    """`keep` visual tokens from layer `k` on, all of them before.

    Args:
        k: layers of *this* stack that see every visual token; default 2 of 32, scaled to its depth.
        keep: tokens kept, instead of a budget.
        preset: "keep-144" and others: K (scaled to the depth) and the share kept, instead of a budget.

    Returns:
        The plan; another number of visual tokens than nominal keeps the same fraction.  None: budget out of reach.
    """
    amounts(tokens, preset=preset, keep=keep)
    if preset is not None:
        amounts(None, preset=preset, k=k)
    full, share = (FULL_LAYERS, None) if preset is None else preset_of(preset, PRESETS)
    full = scale_layers((full,), shape.layers)[0] if k is None else integer("k", k, 1, shape.layers - 1)
    if keep is not None:
        count = integer("keep", keep, 0, shape.tokens)
    elif preset is not None:
        count = nearest(share * shape.tokens / PRESET_TOKENS)
    else:
        fraction = (shape.layers * tokens / shape.nominal - full) / (shape.layers - full)
        if not 0 <= fraction <= 1:
            return None
        count = nearest(fraction * shape.tokens)
    stage = Stage(full, count, select, probe=full - 1, scoring="row", dominant=count)
    return Plan("fastv", shape, stages=(stage,), positions="original", text_guided=True)


def select(view) -> Selection:
    """The `view.keep` slots with the largest score [I, n], ascending; states unchanged."""
    scores = view.from_last_token()
    return Selection(index=top_k(scores, view.keep), scores=scores)
