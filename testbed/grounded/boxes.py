"""Boxes: how well a told one fits, and what a guesser who sees nothing gets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from testbed.data.scenes import FULL_GRID

GOOD = 0.5  # a box counts as right from this overlap on, as in RefCOCO's ACC@0.5


def read_box(text: str) -> list[int] | None:
    """The four numbers of an answer, None when there are not exactly four."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    return numbers if len(numbers) == 4 else None


def overlap(box: Sequence[float] | None, other: Sequence[float]) -> float:
    """Intersection over union of [x1, y1, x2, y2]; 0 for no box and for one without area."""
    if box is None or box[2] <= box[0] or box[3] <= box[1]:
        return 0.0
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    shared = max(width, 0) * max(height, 0)
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return shared / (area - shared)


def chance(boxes: Iterable[Sequence[float]]) -> dict[str, float]:
    """Mean overlap and share of right boxes of the best guesser who always tells one square box of whole patches.

    Each of the two has its own best box.
    """
    truth = list(boxes)
    fits = [
        [overlap((x, y, x + side, y + side), box) for box in truth]
        for side in range(2, FULL_GRID + 1)
        for x in range(FULL_GRID - side + 1)
        for y in range(FULL_GRID - side + 1)
    ]
    return {
        "iou": max(sum(row) for row in fits) / len(truth),
        "acc_50": max(sum(fit >= GOOD for fit in row) for row in fits) / len(truth),
    }
