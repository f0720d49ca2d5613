"""Where is the red star? A box as answer, in patches: "x1 y1 x2 y2", each edge of the box rounded to a patch's edge.

The kinds of the base testbed are asked beside it in training, so that they are not forgotten.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from testbed.data import questions as base
from testbed.data.questions import Question
from testbed.data.scenes import PATCH, Scene, outline_box

KINDS = ("box",)
TRAINING_KINDS = base.TRAINING_KINDS + KINDS


def box_in_patches(scene: Scene, number: int) -> list[float]:
    """Edges [x1, y1, x2, y2] of an object, in patches from the picture's upper left corner."""
    return [edge / PATCH for edge in outline_box(scene.things[number])]


def candidates(scene: Scene) -> list[Question]:
    """Every valid question about a scene, in a fixed order."""
    found = []
    for number, reference in base.references(scene.things):
        answer = " ".join(str(round(edge)) for edge in box_in_patches(scene, number))
        found.append(Question("box", f"Where is the {reference}?", answer, ((number,),)))
    return found


def draw_question(kind: str, scene: Scene, rng: np.random.Generator, seen: Counter | None = None) -> Question | None:
    """One question of a kind, or None when the scene has none; of boxes all are equally likely."""
    if kind != "box":
        return base.draw_question(kind, scene, rng, seen)
    pool = candidates(scene)
    return pool[rng.integers(len(pool))]
