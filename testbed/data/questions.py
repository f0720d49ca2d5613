"""Questions about a drawn scene: one word answers, one kind per skill.

| kind  | example                                                                          | answers          |
|-------|----------------------------------------------------------------------------------|------------------|
| exist | Is there a red star?                                                             | yes, no          |
| color | What color is the star?                                                          | 8 colours        |
| shape | What shape is the red object?                                                    | 6 shapes         |
| count | How many objects are red?                                                        | 1, 2, 3, 4       |
| digit | What digit is on the red star?                                                   | 0 to 9           |
| hop2  | What shape has the same color as the star?                                       | all of the above |
| hop3  | What digit has the same shape as the object with the same color as the star?     | all of the above |

`exist1` ("Is there a star?") exists for the training curriculum only. Half of the negative `exist` questions are hard:
the colour is there, the shape is there, but not together. A reference ("the star", "the red object", "the red star")
always names exactly one object, and each "same ... as" leads to exactly one other object.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from testbed.data.scenes import COLOR_NAMES, SHAPES, Scene, Thing

KINDS = ("exist", "color", "shape", "count", "digit", "hop2", "hop3")
TRAINING_KINDS = KINDS + ("exist1",)
PLURALS = {shape: shape + "s" for shape in SHAPES} | {"cross": "crosses"}
MAX_COUNT = 4


@dataclass(frozen=True)
class Question:
    """A question and its one-word answer.

    things: the objects (numbers in the scene) that must be seen, one tuple per hop, in the order of reasoning;
    bridges: the words found on the way, one per hop but the last: the colour or shape that leads to the next object.
    """

    kind: str
    text: str
    answer: str
    things: tuple[tuple[int, ...], ...]
    bridges: tuple[str, ...] = ()
    hard: bool = False


def candidates(kind: str, scene: Scene) -> list[Question]:
    """Every valid question of a kind about a scene, in a fixed order."""
    return _BUILDERS[kind](scene.things)


def draw_question(kind: str, scene: Scene, rng: np.random.Generator, seen: Counter | None = None) -> Question | None:
    """One question of a kind, or None when the scene has none.

    The answer is drawn first, then the question. With `seen` (answers given so far, by (kind, answer)) the rarest
    available answer is taken, which balances a question set; without it every available answer is equally likely.
    """
    by_answer: dict[str, list[Question]] = {}
    for question in candidates(kind, scene):
        by_answer.setdefault(question.answer, []).append(question)
    if not by_answer:
        return None
    answers = sorted(by_answer)
    if seen is not None:
        rarest = min(seen[kind, answer] for answer in answers)
        answers = [answer for answer in answers if seen[kind, answer] == rarest]
    pool = by_answer[answers[rng.integers(len(answers))]]
    hard = [question for question in pool if question.hard]
    if hard and len(hard) < len(pool):
        pool = hard if rng.random() < 0.5 else [question for question in pool if not question.hard]
    return pool[rng.integers(len(pool))]


def references(things: tuple[Thing, ...]) -> list[tuple[int, str]]:
    """Every way to name exactly one object: (number, "star" | "red object" | "red star")."""
    shapes, colors = Counter(t.shape for t in things), Counter(t.color for t in things)
    found = []
    for number, thing in enumerate(things):
        if shapes[thing.shape] == 1:
            found.append((number, thing.shape))
        if colors[thing.color] == 1:
            found.append((number, f"{thing.color} object"))
        found.append((number, f"{thing.color} {thing.shape}"))
    return found


def _exist(things: tuple[Thing, ...]) -> list[Question]:
    there = {(t.color, t.shape): number for number, t in enumerate(things)}
    colors, shapes = {t.color for t in things}, {t.shape for t in things}
    found = []
    for color in COLOR_NAMES:
        for shape in SHAPES:
            number = there.get((color, shape))
            answer = "no" if number is None else "yes"
            hard = number is None and color in colors and shape in shapes
            near = [n for n, t in enumerate(things) if t.color == color or t.shape == shape]
            seen = tuple(near) if number is None else (number,)
            found.append(Question("exist", f"Is there a {color} {shape}?", answer, (seen,), hard=hard))
    return found


def _exist_single(things: tuple[Thing, ...]) -> list[Question]:
    found = []
    for attribute, names in (("color", COLOR_NAMES), ("shape", SHAPES)):
        for name in names:
            having = tuple(n for n, t in enumerate(things) if getattr(t, attribute) == name)
            what = name if attribute == "shape" else f"{name} object"
            found.append(Question("exist1", f"Is there a {what}?", "yes" if having else "no", (having,)))
    return found


def _color(things: tuple[Thing, ...]) -> list[Question]:
    return [
        Question("color", f"What color is the {ref}?", things[n].color, ((n,),))
        for n, ref in references(things)
        if ref == things[n].shape
    ]


def _shape(things: tuple[Thing, ...]) -> list[Question]:
    return [
        Question("shape", f"What shape is the {ref}?", things[n].shape, ((n,),))
        for n, ref in references(things)
        if ref.endswith("object")
    ]


def _count(things: tuple[Thing, ...]) -> list[Question]:
    found = []
    for attribute in ("color", "shape"):
        for name, total in sorted(Counter(getattr(t, attribute) for t in things).items()):
            if total <= MAX_COUNT:
                having = tuple(n for n, t in enumerate(things) if getattr(t, attribute) == name)
                what = PLURALS.get(name, name)
                found.append(Question("count", f"How many objects are {what}?", str(total), (having,)))
    return found


def _digit(things: tuple[Thing, ...]) -> list[Question]:
    return [
        Question("digit", f"What digit is on the {ref}?", str(things[n].digit), ((n,),))
        for n, ref in references(things)
        if things[n].digit is not None
    ]


def _partner(things: tuple[Thing, ...], number: int, attribute: str) -> int | None:
    """The only other object with the same colour (or shape), None when there is no such or more than one."""
    value = getattr(things[number], attribute)
    others = [n for n, t in enumerate(things) if n != number and getattr(t, attribute) == value]
    return others[0] if len(others) == 1 else None


def _targets(things: tuple[Thing, ...], number: int, link: str) -> list[tuple[str, str]]:
    """What can be asked about the object reached through `link`: (word, answer)."""
    other = "shape" if link == "color" else "color"
    asked = [(other, getattr(things[number], other))]
    if things[number].digit is not None:
        asked.append(("digit", str(things[number].digit)))
    return asked


def _two_hops(things: tuple[Thing, ...]) -> list[Question]:
    found = []
    for number, ref in references(things):
        for link in ("color", "shape"):
            end = _partner(things, number, link)
            # "the same color as the red star" would name the colour and leave one hop
            if end is None or getattr(things[number], link) in ref.split():
                continue
            for word, answer in _targets(things, end, link):
                text = f"What {word} has the same {link} as the {ref}?"
                found.append(Question("hop2", text, answer, ((number,), (end,)), (getattr(things[number], link),)))
    return found


def _three_hops(things: tuple[Thing, ...]) -> list[Question]:
    found = []
    for number, ref in references(things):
        for first, second in (("color", "shape"), ("shape", "color")):
            middle = _partner(things, number, first)
            end = None if middle is None else _partner(things, middle, second)
            if end is None or end == number or getattr(things[number], first) in ref.split():
                continue
            for word, answer in _targets(things, end, second):
                text = f"What {word} has the same {second} as the object with the same {first} as the {ref}?"
                hops = ((number,), (middle,), (end,))
                bridges = (getattr(things[number], first), getattr(things[middle], second))
                found.append(Question("hop3", text, answer, hops, bridges))
    return found


_BUILDERS = {
    "exist": _exist,
    "exist1": _exist_single,
    "color": _color,
    "shape": _shape,
    "count": _count,
    "digit": _digit,
    "hop2": _two_hops,
    "hop3": _three_hops,
}
