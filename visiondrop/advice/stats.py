"""Intervals by bootstrap over pictures, who is out, the front, and the recommendation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RESAMPLES = 1000
SEED = 0


@dataclass
class Summary:
    """One setting over the samples it was measured on; shares in 0 … 1, KL in nats per token, seconds, bytes."""

    name: str
    samples: int
    agreement: float
    interval: tuple[float, float]
    kl: float
    kl_interval: tuple[float, float]
    same_answers: float
    accuracy: float | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    first: float | None = None
    later: float | None = None
    speedup: float | None = None
    cache: int | None = None
    peak: int | None = None
    tflops: float | None = None
    mean_tokens: float | None = None
    dropped: bool = False
    front: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Share of next tokens that change."""
        return 1 - self.agreement


def ratio(top: Sequence[float], bottom: Sequence[float], keys: Sequence[str]) -> tuple[float, tuple[float, float]]:
    """(sum of `top` over sum of `bottom`, its 95 % interval), pictures drawn with replacement with all their samples.

    Where every picture agrees, resampling would give no width; then 0 or 1 gets the rule of three over pictures.
    """
    groups = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    tops, bottoms, n = np.zeros(len(groups)), np.zeros(len(groups)), len(groups)
    for key, a, b in zip(keys, top, bottom):
        tops[groups[key]] += a
        bottoms[groups[key]] += b
    value = float(tops.sum() / max(bottoms.sum(), 1e-12))
    weights = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    draws = (weights @ tops) / np.maximum(weights @ bottoms, 1e-12)
    low, high = (float(x) for x in np.quantile(draws, [0.025, 0.975]))
    if low == high == value and value in (0.0, 1.0):
        room = min(1.0, 3 / n)
        low, high = (value, room) if value == 0 else (1 - room, value)
    return value, (low, high)


def summarise(name: str, cells: Sequence[dict[str, Any]], answers: dict[int, dict], keys: Sequence[str]) -> Summary:
    """Rows of one setting as numbers.

    Args:
        answers: by sample, the unpruned answers; keys: by sample, its picture.
    """
    clusters = [keys[c["sample"]] for c in cells]
    tokens = [c["tokens"] for c in cells]
    agreement, interval = ratio([c["same"] for c in cells], tokens, clusters)
    kl, kl_interval = ratio([c["kl"] for c in cells], tokens, clusters)
    same = sum(c["answer"] for c in cells) / len(cells)
    out = Summary(name, len(cells), agreement, interval, kl, kl_interval, same)
    scored = [c for c in cells if c.get("right") is not None]
    if scored:
        right = [float(c["right"]) for c in scored]
        change = [r - float(answers[c["sample"]]["right"]) for r, c in zip(right, scored)]
        out.accuracy = sum(right) / len(right)
        out.difference, out.difference_interval = ratio(
            change, [1.0] * len(change), [keys[c["sample"]] for c in scored]
        )
    return out


def is_out(summary: Summary, loss: float) -> bool:
    """Whether a setting clearly changes more than `loss`: all of its interval lies beyond."""
    return 1 - summary.interval[1] > loss


def mark_front(found: Sequence[Summary]) -> None:
    """Mark the settings that no other beats in both loss and time to first token."""
    for one in found:
        one.front = one.speedup is not None and not any(
            other.speedup is not None
            and (other.loss <= one.loss and other.speedup >= one.speedup)
            and (other.loss < one.loss or other.speedup > one.speedup)
            for other in found
        )


def recommend(found: Sequence[Summary], loss: float) -> Summary | None:
    """The least work among the settings whose share of changed tokens is within `loss`; None where there is none.

    Work is the ledger's FLOPs, which no noise of a clock can reorder; the decoder's mean tokens break ties.
    """
    good = [s for s in found if not s.dropped and s.loss <= loss]
    return min(good, key=lambda s: (s.tflops or 0.0, s.mean_tokens or 0.0, s.loss), default=None)


def nearest(found: Sequence[Summary]) -> Summary:
    """The setting that changes least."""
    return min(found, key=lambda s: (s.loss, s.kl))
