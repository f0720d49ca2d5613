"""Pictures with questions, for the captures."""

from collections.abc import Iterator

import numpy as np

from figures.data.probe import square
from testbed.data.sets import draw_set


class Scenes:
    """Pictures with questions: the testbed's validation scenes, or files and questions from the command line.

    Attributes:
        count: pictures that a mean over pictures takes.
    """

    def __init__(self, images: list[str] | None, questions: list[str] | None, side: int, count: int = 200):
        self.images, self.questions, self.side = images, questions or ["What is in the image?"], side
        self.count = count

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[tuple[str, np.ndarray]]]]:
        """(picture uint8 [H, W, 3], [(question, needed patches bool [n]; all False where unknown)])."""
        if self.images:
            nothing = np.zeros((self.side // 14) ** 2, dtype=bool)
            for file in self.images:
                yield square(file, self.side), [(q, nothing) for q in self.questions]
            return
        for _, scene, asked in draw_set("validation"):
            owner = scene.labels.things
            yield scene.image, [(q.text, np.isin(owner, sorted({t for hop in q.things for t in hop}))) for q in asked]
