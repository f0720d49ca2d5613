"""What a testbed is made of: how its scenes are drawn, and how questions about them are asked.

Sets (testbed.data.sets) and training (testbed.training.course) read a testbed through these two values; the base testbed's are here, a sibling's in its own package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from testbed.data.questions import KINDS, TRAINING_KINDS, Question, draw_question
from testbed.data.scenes import VERSION, draw_scene, scene_rng
from testbed.data.tokenizer import IDS


@dataclass(frozen=True)
class Scenes:
    """Drawn scenes, each a pure function of (version, split, index, grid).

    draw: scene by (split, index), and by (split, index, grid) for training, where a grid that is not drawn is an error;
    rng: generator of a scene by (split, index, purpose); pixels: a scene's pixels, uint8 [..., side, side, 3].
    """

    version: int
    draw: Callable[..., Any]
    rng: Callable[[str, int, int], np.random.Generator]
    pixels: Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class Questions:
    """Questions about scenes.

    kinds: of the sets; training_kinds: those, and any that only training asks; draw: (kind, scene, generator, answers
    given so far or None) to a question, or None when the scene has none of the kind; fallback: kinds of which every
    scene has one; ids: number of each word.
    """

    kinds: tuple[str, ...]
    training_kinds: tuple[str, ...]
    draw: Callable[[str, Any, np.random.Generator, Counter | None], Question | None]
    fallback: tuple[str, ...]
    ids: dict[str, int]

    def draw_from(self, mix: dict[str, float], scene, rng: np.random.Generator) -> Question:
        """A question whose kind follows the shares of `mix`; after six kinds without one, a fallback."""
        kinds = list(mix)
        shares = np.array([mix[kind] for kind in kinds], float)
        for kind in rng.choice(kinds, 6, p=shares / shares.sum()):
            question = self.draw(str(kind), scene, rng, None)
            if question is not None:
                return question
        return self.draw_fallback(scene, rng)

    def draw_fallback(self, scene, rng: np.random.Generator) -> Question:
        """A question of the first fallback kind that the scene has one of."""
        found = (self.draw(kind, scene, rng, None) for kind in self.fallback)
        return next(question for question in found if question is not None)


SCENES = Scenes(VERSION, draw_scene, scene_rng, attrgetter("image"))
QUESTIONS = Questions(KINDS, TRAINING_KINDS, draw_question, fallback=("exist",), ids=IDS)
