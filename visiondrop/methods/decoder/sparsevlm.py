"""SparseVLM v1.5 (Zhang et al., ICML 2025): text tokens that fit the image rate it; part of the pruned is recycled.

Source: `Gumpest/SparseVLMs`, branch v1.5 (docs/methods/sparsevlm.md).  Once, on the input embeddings: raters = text tokens
after the image whose share of the image's attention is above the mean.  After layers 2, 6 and 15 of 32: the raters'
attention in that layer ranks the visual tokens; a table says how many are kept; the best 30 % of the others are
clustered by density peaks, and every cluster's mean goes on as one token.  Positions are renumbered.
Scores, distances and densities are float32 in every dtype.  Beyond the original (which would fail): without a rater
above the mean all the text rates, and without text after the image the prompt's last token does.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import VisionDropError
from ...ops.clustering import density_peaks
from ...ops.selection import Selection, complement, gather_rows, top_k
from ...plans.plan import Kept, Plan, Stage, View
from ...plans.schedule import check_layers, nearest, scale_layers
from ...plans.shape import VisualShape
from ..method import InDecoder
from ..options import option, spell
from ..registry import register

LAYERS = (3, 7, 16)  # of 32, first to see fewer tokens: the authors' "after layers 2, 6, 15"
TABLES = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}  # kept, clusters not counted
TABLE_TOKENS = 576


@register("sparsevlm")
@dataclass(frozen=True, kw_only=True)
class SparseVLM(InDecoder):
    """The authors' tables for 192, 128, 96 and 64, which are means at layer outputs; the notes give both counts."""

    strict_budget: bool = option(False, "on = amounts between the tables whose mean at layer inputs is `tokens`")
    keep: tuple[int, ...] | None = option(
        None, "tokens kept by each stage, clusters not counted, instead of a budget", amount=True
    )
    layers: tuple[int, ...] | None = option(
        None, "first layers of this stack with fewer tokens; default 3, 7, 16 of 32, scaled to its depth"
    )
    noise: Sequence[Tensor] | None = option(
        None,
        "for each stage that prunes a 1-D tensor, uniform in [0, 1), one number per clustered token; the densities get 1e-6 "
        "of it.  Drawn from `seed` and the image's fingerprint where not given",
    )
    seed: int = option(0, "of the noise", low=0, high=2**31 - 1)

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """Stages after three layers.  None: budget out of reach."""
        self.one_way(tokens)
        at = scale_layers(LAYERS, shape.layers) if self.layers is None else check_layers(self.layers, shape.layers)
        if at[0] < 1:
            raise VisionDropError(
                f"layers={','.join(map(str, at))}: the layer before a stage gives its scores, so the first is 1 or more"
            )
        kept = self._kept(tokens, shape, at)
        if kept is None:
            return None
        rows = cascade(kept, shape.tokens)
        picks = self._picks([pool for _, pool, _ in rows])
        stages = tuple(
            Stage(layer, Kept(count, clusters), pick, layer - 1, "rows")
            for layer, (count, _, clusters), pick in zip(at, rows, picks)
        )
        notes = (_both_counts(tokens, [shape.tokens, *(stage.keep for stage in stages)], at, shape.layers),)
        seeded = self.noise is None
        plan = Plan("sparsevlm", shape, stages=stages, text_guided=True, seeded=seeded, begin=find_raters, notes=notes)
        return self.placed(plan)

    def _kept(self, tokens: int | None, shape: VisualShape, at: Sequence[int]) -> Sequence[int] | None:
        """Tokens kept by each stage at the layers `at`, clusters not counted; None where the budget is out of reach."""
        if self.keep is not None:
            if len(self.keep) != len(at) or min(self.keep) < 0:
                raise VisionDropError(
                    f"keep={spell(self.keep)}: give {len(at)} counts, one for each stage at {list(at)}"
                )
            return self.keep
        if self.strict_budget:
            return solve(tokens * shape.tokens / shape.nominal, shape.tokens, at, shape.layers)
        if shape.nominal == TABLE_TOKENS:
            return TABLES.get(tokens)
        raise VisionDropError(
            f"sparsevlm has published amounts for {TABLE_TOKENS} visual tokens, not for {shape.nominal}: give "
            "strict_budget=on (--strict-budget), or keep=… with one count per stage"
        )

    def _picks(self, pools: Sequence[int]) -> list[partial | None]:
        """The selector of every stage from the sizes of the pools to cluster; None where a stage prunes nothing."""
        sizes = [size for size in pools if size]
        lengths = None if self.noise is None else [len(x) for x in self.noise]
        if lengths not in (None, sizes):
            raise VisionDropError(
                f"noise of lengths {lengths}: give one 1-D tensor for each stage that prunes, of lengths {sizes}"
            )
        picks, stage = [], 0
        for size in pools:
            fed = self.noise[stage] if self.noise is not None and size else None
            picks.append(partial(select, pool=size, stage=stage, seed=self.seed, noise=fed) if size else None)
            stage += bool(size)
        return picks


def cascade(kept: Sequence[int], total: int) -> list[tuple[int, int, int]]:
    """(kept, pool to cluster, clusters) of every stage, from `total` tokens; a stage that cannot prune keeps all."""
    rows = []
    for count in kept:
        count = min(count, total)
        pruned = total - count
        pool = int(0.3 * pruned) + 1 if pruned else 0
        clusters = pool // 10 + 1 if pool else 0
        if clusters >= pruned:
            count, pool, clusters = total, 0, 0
        rows.append((count, pool, clusters))
        total = count + clusters
    return rows


def mean(counts: Sequence[int], layers: Sequence[int], depth: int) -> float:
    """Mean tokens per layer when the stages at `layers` of `depth` lead from counts[0] to counts[1], counts[2] …"""
    edges = [0, *layers, depth]
    return sum(n * (b - a) for n, a, b in zip(counts, edges, edges[1:])) / depth


def solve(wanted: float, total: int, layers: Sequence[int], depth: int) -> tuple[int, ...] | None:
    """Counts on the line through the authors' tables (and one token, and all) with mean `wanted`, to within a token."""
    if len(layers) != len(LAYERS):
        raise VisionDropError(f"strict_budget=on: give {len(LAYERS)} layers, or keep=… with one count per stage")
    tables = [tuple(n * total / TABLE_TOKENS for n in table) for table in (TABLES[t] for t in sorted(TABLES))]
    points = [(1, 1, 1), *tables, (total, total, total)]

    def at(place: float) -> tuple[int, ...]:
        k = min(int(place), len(points) - 2)
        return tuple(nearest(a + (b - a) * (place - k)) for a, b in zip(points[k], points[k + 1]))

    def excess(kept: Sequence[int]) -> float:
        return mean([total, *(count + clusters for count, _, clusters in cascade(kept, total))], layers, depth) - wanted

    low, high = 0.0, len(points) - 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(at(middle)) < 0 else (low, middle)
    first, second, third = at(high)
    best = min(((first, second, max(0, third + move)) for move in range(-3, 4)), key=lambda kept: abs(excess(kept)))
    return best if abs(excess(best)) <= 1 else None


def _both_counts(tokens: int | None, counts: Sequence[int], layers: Sequence[int], depth: int) -> str:
    budget = "" if tokens is None else f"for a budget of {tokens}, "
    outputs = mean(counts, [layer - 1 for layer in layers], depth)  # a layer's output is the next one's input
    return (
        f"SparseVLM's authors count tokens at layer outputs: {budget}mean {outputs:.2f} that way, "
        f"{mean(counts, layers, depth):.2f} at layer inputs as for all methods here"
    )


def draw(view: View, size: int, stage: int, seed: int, noise: Tensor | None = None) -> Tensor:
    """[I, size] float32 in [0, 1): `noise` for every image, or drawn image by image whatever the batch."""
    if noise is not None:
        rows = [torch.as_tensor(noise)] * len(view.seeds)
    else:
        keys = [zlib.crc32(f"{seed} {image} {stage}".encode()) for image in view.seeds]
        rows = [torch.rand(size, generator=torch.Generator().manual_seed(key)) for key in keys]
    return torch.stack(rows).to(view.hidden.device, torch.float32)


def find_raters(view: View) -> None:
    """Store in `view.memory` which text tokens after the image rate it: [I, S + 1] 0/1 by place in the text."""
    text, wanted = view.suffix_hidden()  # [I, S, D], [I, S]
    logits = view.hidden.float() @ text.float().transpose(1, 2)  # [I, n, S]
    fit = logits.masked_fill(~wanted[:, None], float("-inf")).softmax(dim=-1).mean(dim=1)  # [I, S]
    raters = wanted & (fit > fit.sum(dim=1, keepdim=True) / wanted.sum(dim=1, keepdim=True))
    raters = raters | (wanted & ~raters.any(dim=1, keepdim=True))
    places = _places(wanted)
    view.memory["raters"] = fit.new_zeros(len(fit), fit.shape[1] + 1).scatter_(1, places, raters.to(fit.dtype))


def _places(wanted: Tensor) -> Tensor:
    """[I, S] bool -> [I, S] long, every text token's place in the text; S (the last column) where there is none.

    Places, not coordinates: another image in the text shrinks from stage to stage.
    """
    return torch.where(wanted, wanted.cumsum(dim=1) - 1, -1) % (wanted.shape[1] + 1)


def rate(view: View) -> Tensor:
    """[I, n] float32: the raters' attention to every visual token, mean over raters and heads."""
    rows, wanted = view.from_suffix()  # [I, S, n], [I, S]
    weights = view.memory["raters"].gather(1, _places(wanted)) * wanted
    return (weights[:, None] @ rows)[:, 0] / weights.sum(dim=1, keepdim=True)


def select(view: View, kept: Kept, pool: int, stage: int, seed: int, noise: Tensor | None) -> Selection:
    """Keep `kept.dominant` slots in order, then the means of `kept.contextual` clusters of the `pool` best others.

    Args:
        stage, seed, noise: see `draw`; the densities' noise.
    """
    scores, hidden, random = rate(view), view.hidden, draw(view, pool, stage, seed, noise)
    chosen = top_k(scores, kept.dominant)
    pruned = complement(chosen, hidden.shape[1])
    candidates = pruned.gather(1, scores.gather(1, pruned).topk(pool, dim=1).indices)  # by falling score
    states = gather_rows(hidden, candidates).float()
    centres, labels = density_peaks(states, kept.contextual, random)
    member = torch.nn.functional.one_hot(labels, kept.contextual).to(states.dtype)  # [I, pool, C]
    size = (member.sum(dim=1) + 1e-6).unsqueeze(-1)

    def mix(x: Tensor) -> Tensor:
        means = (member.transpose(1, 2) @ gather_rows(x, candidates).float()) / size
        return torch.cat([gather_rows(x, chosen), means.to(x.dtype)], dim=1)

    index = torch.cat([chosen, candidates.gather(1, centres)], dim=1)
    merged = complement(index, hidden.shape[1])
    fate = torch.full_like(scores, -1, dtype=torch.long).scatter_(1, candidates, labels)
    return Selection(index, mix(hidden), kept.dominant, merged, fate.gather(1, merged), scores, mix)
