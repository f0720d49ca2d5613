"""From one number, the budget, to a token count per segment of the decoder stack.

A *segment* is a run of decoder layers that see the same number of visual tokens.  The paper's rule for
VisionDrop: the first segment gets 1.5 budgets (3 for video), then the count falls by a constant factor r,
so that the mean over all layers is the budget.  Counts are rounded to nearest, and the last segment takes the
residue, which makes the mean exact.  This reproduces the counts the authors published for budget 32
(48/35/26/19) and those derived from the rule for 64, 128 and 192.
"""

import math
from collections.abc import Sequence
from itertools import product

from .errors import VisionDropError

REFERENCE_DEPTH = 32  # layer settings are published for a stack of this depth


def nearest(x: float) -> int:
    """Round to nearest, halves up (Python's `round` takes halves to even)."""
    return math.floor(x + 0.5)


def scale_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Layer counts stated for 32 layers, moved to a stack of `depth`: max(1, round(l * depth / 32)), distinct."""
    scaled = tuple(max(1, nearest(layer * depth / REFERENCE_DEPTH)) for layer in layers)
    if any(b <= a for a, b in zip(scaled, scaled[1:])) or (scaled and scaled[-1] >= depth):
        raise VisionDropError(
            f"the stage layers {list(layers)} (stated for {REFERENCE_DEPTH} layers) become {list(scaled)} in a stack of "
            f"{depth} layers, which are not distinct layers inside it; give `layers` for this depth, e.g. "
            f"--option layers={','.join(str(max(1, depth * k // 4)) for k in (1, 2, 3))}"
        )
    return scaled


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


def geometric(weights: Sequence[int], first: int, total: int) -> tuple[int, ...] | None:
    """Token counts per segment: `first`, then geometric, rounded to nearest, the last taking the residue.

    Args:
        weights: layers in each segment.
        first: count in the first segment.
        total: wanted sum over layers of the count (budget x depth).

    Returns:
        Non-increasing counts, all >= 1, with sum(w * n) == total; or None where there are none.  Where the last
        segment's length does not divide the residue, inner counts move by the fewest tokens that make it do.
    """
    if len(weights) == 1:
        return (first,) if first * weights[0] == total else None
    if first < 1 or weights[0] * first > total or sum(weights) * first < total:
        return None
    r = decay(weights, first, total)
    inner = [nearest(first * r**k) for k in range(1, len(weights) - 1)]
    reach = range(-weights[-1], weights[-1] + 1)
    moves = sorted(product(reach, repeat=len(inner)), key=lambda m: (sum(map(abs, m)), m)) if inner else [()]
    for move in moves:
        counts = [first, *(n + d for n, d in zip(inner, move))]
        residue = total - sum(w * n for w, n in zip(weights, counts))
        if residue % weights[-1]:
            continue
        counts.append(residue // weights[-1])
        if counts[-1] >= 1 and all(a >= b for a, b in zip(counts, counts[1:])):
            return tuple(counts)
    return None


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
