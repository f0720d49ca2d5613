"""From one number, the budget, to a token count per segment of the decoder stack.

A *segment* is a run of decoder layers that see the same number of visual tokens.  The paper's rule for
VisionDrop: the first segment gets 1.5 budgets (3 for video), then the count falls by a constant factor r,
so that the mean over all layers is the budget.  Counts are rounded to nearest, and the last segment takes the
residue, which makes the mean exact.  This reproduces the counts the authors published for budget 32
(48/35/26/19) and those derived from the rule for 64, 128 and 192.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

from ..errors import VisionDropError
from .shape import VisualShape

REFERENCE_DEPTH = 32  # layer settings are published for a stack of this depth


def nearest(x: float) -> int:
    """Round to nearest, halves up (Python's `round` takes halves to even)."""
    return math.floor(x + 0.5)


def scale_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Layer counts stated for 32 layers, moved to a stack of `depth`: max(1, round(l * depth / 32)), distinct.

    Python's `round`: FastV's K = 2 stays 2 in the 40 layers of a 13B model (2.5), as others run it.
    """
    scaled = tuple(max(1, round(layer * depth / REFERENCE_DEPTH)) for layer in layers)
    if any(b <= a for a, b in zip(scaled, scaled[1:])) or (scaled and scaled[-1] >= depth):
        raise VisionDropError(
            f"the stage layers {list(layers)} (stated for {REFERENCE_DEPTH} layers) become {list(scaled)} in a stack of "
            f"{depth} layers, which are not distinct layers inside it; give `layers` for this depth, e.g. "
            f"--option layers={','.join(str(max(1, depth * k // 4)) for k in (1, 2, 3))}"
        )
    return scaled


def check_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """`layers` if they are distinct ascending 0-based layers of a stack of `depth`, else an error."""
    if list(layers) != sorted(set(layers)) or any(not 0 <= layer < depth for layer in layers):
        raise VisionDropError(
            f"layers={','.join(map(str, layers))}: give distinct ascending layers in 0 … {depth - 1}, e.g. layers=8,16,24"
        )
    return tuple(layers)


def segment_lengths(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Number of layers in each segment when stages act before the 0-based `layers` of a stack of `depth`."""
    edges = [0, *layers, depth]
    return tuple(b - a for a, b in zip(edges, edges[1:]))


def decay(weights: Sequence[int], first: float, total: float) -> float:
    """The factor r in (0, 1] with sum_k weights[k] * first * r**k == total, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        value = sum(w * first * middle**k for k, w in enumerate(weights))
        low, high = (middle, high) if value < total else (low, middle)
    return high


@lru_cache(maxsize=64)
def _moves(size: int, reach: int) -> tuple[tuple[int, ...], ...]:
    """All moves of `size` counts by up to `reach` tokens, the smallest first."""
    return tuple(sorted(product(range(-reach, reach + 1), repeat=size), key=lambda m: (sum(map(abs, m)), m)))


def geometric(weights: Sequence[int], first: int, total: int, least: int = 1) -> tuple[int, ...] | None:
    """Token counts per segment: `first`, then geometric, rounded to nearest, the last taking the residue.

    Args:
        weights: layers in each segment.
        first: count in the first segment.
        total: wanted sum over layers of the count (budget x depth).
        least: smallest count allowed in any segment.

    Returns:
        Non-increasing counts, all >= least, with sum(w * n) == total; or None where there are none.  Where the last
        segment's length does not divide the residue, or the last count comes out too small, inner counts move by the
        fewest tokens that help.
    """
    if len(weights) == 1:
        return (first,) if first * weights[0] == total else None
    if first < 1 or weights[0] * first > total or sum(weights) * first < total:
        return None
    r = decay(weights, first, total)
    inner = [nearest(first * r**k) for k in range(1, len(weights) - 1)]
    for move in _moves(len(inner), weights[-1]):
        counts = [first, *(n + d for n, d in zip(inner, move))]
        residue = total - sum(w * n for w, n in zip(weights, counts))
        if residue % weights[-1]:
            continue
        counts.append(residue // weights[-1])
        if counts[-1] >= least and all(a >= b for a, b in zip(counts, counts[1:])):
            return tuple(counts)
    return None


def per_unit(tokens: int, shape: VisualShape) -> int | None:
    """Tokens every unit keeps where all keep alike and nothing is removed later.

    Args:
        tokens: the budget, stated for `shape.nominal_units`; shape: the image's `VisualShape`.

    Returns:
        None where no whole number brings the mean within one token of the budget.
    """
    count = nearest(tokens / shape.nominal_units)
    return count if 1 <= count <= shape.patches and abs(count * shape.nominal_units - tokens) <= 1 else None


def split(count: int, dominant_ratio: float) -> tuple[int, int]:
    """(dominant, contextual) = (floor(ratio * n), the rest); 7/8 gives the published 42+6, 30+5, 22+4, 16+3."""
    dominant = math.floor(count * dominant_ratio + 1e-9)
    return dominant, count - dominant


def ranges(values: Sequence[int]) -> str:
    """'3 … 384', or several such runs, for an ascending list of reachable budgets."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    if len(runs) > 4:
        return f"{values[0]} … {values[-1]}, with gaps ({len(values)} values)"
    return ", ".join(f"{a}" if a == b else f"{a} … {b}" for a, b in runs)
