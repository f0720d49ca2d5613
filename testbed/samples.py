"""Question sets of the testbed by name, for `visiondrop advise`: pictures, questions, right answers."""

from collections.abc import Callable
from itertools import islice
from typing import Any

from PIL import Image

from testbed.data.sets import draw_set
from testbed.tasks.answers import first_word

NAMES = {"testbed": "test", "testbed_validation": "validation", "testbed_quick": "quick"}


def load(name: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The first `limit` questions of a set, in its order, with their pictures drawn."""

    def rows():
        for index, scene, asked in draw_set(NAMES[name]):
            picture, key = Image.fromarray(scene.image), f"{name}-{index}"
            for question in asked:
                place = f"{name}, scene {index}"
                yield {
                    "picture": picture,
                    "question": question.text,
                    "answer": question.answer,
                    "place": place,
                    "key": key,
                }

    return list(islice(rows(), limit))


def metric() -> Callable[[str, str], bool]:
    """The testbed's own: the first word of the answer is the expected one."""
    return lambda given, right: first_word(given) == right
