"""Questions about a drawn clip: one-word answers, one kind per skill.

| kind    | examples                                                              | answers             |
|---------|-----------------------------------------------------------------------|---------------------|
| moves   | What shape moves?  What color is the object that moves?               | 6 shapes, 8 colours |
| appears | What shape appears?  What color is the object that appears?           | 6 shapes, 8 colours |
| changes | What shape changes color?  What color does the star become?           | 6 shapes, 8 colours |
| color   | What color is the star?                                               | 8 colours           |
| shape   | What shape is the red object?                                         | 6 shapes            |

The last two never ask for the object that changes its colour.  A reference always names exactly one object.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from testbed.data.questions import Question
from testbed.video.scenes import Actor, Clip

KINDS = ("moves", "appears", "changes", "color", "shape")


def candidates(kind: str, clip: Clip) -> list[Question]:
    """Every valid question of a kind about a clip, in a fixed order; `things` are numbers of its actors."""
    return _BUILDERS[kind](clip.actors)


def draw_question(kind: str, clip: Clip, rng: np.random.Generator, seen: Counter | None = None) -> Question | None:
    """One question of a kind, or None when the clip has none.

    With `seen` (answers given so far, by (kind, answer)) the rarest available answer is taken, which balances a set;
    without it every question is equally likely.
    """
    pool = candidates(kind, clip)
    if seen is not None and pool:
        rarest = min(seen[kind, question.answer] for question in pool)
        pool = [question for question in pool if seen[kind, question.answer] == rarest]
    return pool[rng.integers(len(pool))] if pool else None


def _eventful(role: str, shape_text: str, color_text: str):
    """Builder of the questions about the one object of a role; `{}` in the colour's text stands for its shape."""

    def build(actors: tuple[Actor, ...]) -> list[Question]:
        found = []
        shapes = Counter(actor.shape for actor in actors)
        for number, actor in enumerate(actors):
            if actor.role != role:
                continue
            found.append(Question(role, shape_text, actor.shape, ((number,),)))
            if "{}" not in color_text or shapes[actor.shape] == 1:
                answer = actor.other or actor.color
                found.append(Question(role, color_text.format(actor.shape), answer, ((number,),)))
        return found

    return build


def _color(actors: tuple[Actor, ...]) -> list[Question]:
    shapes = Counter(actor.shape for actor in actors)
    return [
        Question("color", f"What color is the {actor.shape}?", actor.color, ((number,),))
        for number, actor in enumerate(actors)
        if shapes[actor.shape] == 1 and not actor.other
    ]


def _shape(actors: tuple[Actor, ...]) -> list[Question]:
    return [
        Question("shape", f"What shape is the {actor.color} object?", actor.shape, ((number,),))
        for number, actor in enumerate(actors)
        if not actor.other
    ]


_BUILDERS = {
    "moves": _eventful("moves", "What shape moves?", "What color is the object that moves?"),
    "appears": _eventful("appears", "What shape appears?", "What color is the object that appears?"),
    "changes": _eventful("changes", "What shape changes color?", "What color does the {} become?"),
    "color": _color,
    "shape": _shape,
}
