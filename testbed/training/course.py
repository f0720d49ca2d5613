"""What the trainer needs to know of a model: its weights, batches, losses, validation and export.

A course is what one testbed is made of: scenes, questions, and the views that its model gets of them. The base testbed's
is testbed.training.base, a sibling's stands in its own package; a training configuration names one with `course:` and may
name a checkpoint to begin from with `start:`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from testbed.data.material import Questions, Scenes
from testbed.data.questions import Question
from testbed.training.batches import Batch, Stage, Views, pack_questions, thin_out
from testbed.training.export import load_weights
from testbed.training.losses import compute_losses
from testbed.training.model import Sizes, Weights
from visiondrop.errors import VisionDropError

STAGE_STRIDE = 10**9  # scene indices of stage n start at n times this
VALIDATION_START = 500_000  # scenes of the validation split that no question set uses
_COURSES = {
    "base": "testbed.training.base",
    "next": "testbed.next.course",
    "video": "testbed.video.course",
    "grounded": "testbed.grounded.course",
}


def begin_from(weights: Weights, folder: Path) -> Weights:
    """`weights` with the values of a testbed checkpoint wherever name and shape agree.

    Of the word embeddings and the output head the rows that both have are taken: a sibling's vocabulary is the
    testbed's with words added at the end.
    """
    taken, _, _ = load_weights(folder)
    begun = dict(weights)
    for name, value in taken.items():
        fresh = begun.get(name)
        if fresh is None:
            continue
        if fresh.shape == value.shape:
            begun[name] = value.clone()
        elif fresh.shape[1:] == value.shape[1:] and name in ("model.embed_tokens.weight", "lm_head.weight"):
            begun[name] = torch.cat([value, fresh[len(value) :]])
    return begun


@dataclass(frozen=True)
class Course:
    """One kind of model and the questions it learns to answer.

    new_weights: (sizes, seed) to fresh float32 parameters, those of the auxiliary losses ("aux.*") included;
    export: (weights, sizes, folder), writes the checkpoint in its original layout, float16;
    stream: number of the random stream of a scene (`Scenes.rng`) that training questions are drawn from;
    begin: (fresh weights, folder of the checkpoint named by `start:`) to the weights that training begins with;
    validation_scenes: how many are asked, `together` at a time, `per_kind` questions of each kind.
    """

    scenes: Scenes
    questions: Questions
    views: Views
    new_weights: Callable[[Sizes, int], Weights]
    export: Callable[[Weights, Sizes, Path], None]
    stream: int
    validation_scenes: int
    together: int
    per_kind: int
    begin: Callable[[Weights, Path], Weights] = begin_from

    def batches(self, stage: Stage, number: int) -> Batches:
        """Batches by step; a pure function of the stage, its number and the step."""
        if stage.places and not self.views.places:
            raise VisionDropError(f"stage {stage.name}: places are left out of videos only; leave `places` away.")
        return Batches(self, stage, number)

    def whole(self, scenes: Sequence[Any], asked: list[list[Question]]) -> Batch:
        """Scenes with equally many questions each and all that can be seen of them."""
        return Batch(**self.views.whole(scenes), **pack_questions(asked, self.questions))

    def losses(
        self, weights: Weights, sizes: Sizes, batch: Batch, stage: Stage, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss with gradient, plain numbers for the log by name)."""
        kinds = self.questions.training_kinds
        return compute_losses(weights, sizes, batch.to(device), stage, dtype, self.views, kinds)

    def validate(
        self, weights: Weights, sizes: Sizes, stage: Stage, dtype: torch.dtype, device: torch.device
    ) -> dict[str, float]:
        """Accuracy by kind at the full token count, teacher-forced."""
        right: dict[str, list[float]] = {}
        stage = Stage("validation", stage.grid, 1, self.together, questions=1, bridge=0.0, depth=stage.depth)
        for first in range(VALIDATION_START, VALIDATION_START + self.validation_scenes, self.together):
            indices = range(first, first + self.together)
            scenes = [self.scenes.draw("validation", index) for index in indices]
            asked = [self._examine(index, scene) for index, scene in zip(indices, scenes, strict=True)]
            _, report = self.losses(weights, sizes, self.whole(scenes, asked), stage, dtype, device)
            for name, value in report.items():
                right.setdefault(name, []).append(float(value))
        return {name: sum(values) / len(values) for name, values in right.items()}

    def _examine(self, index: int, scene: Any) -> list[Question]:
        """Questions of every kind; a fallback for those a scene has none of, unless it is alone in its batch."""
        rng = self.scenes.rng("validation", index, 1)
        kinds = [kind for kind in self.questions.kinds for _ in range(self.per_kind)]
        drawn = [self.questions.draw(kind, scene, rng, None) for kind in kinds]
        if self.together == 1:
            return [question for question in drawn if question]
        return [question or self.questions.draw_fallback(scene, rng) for question in drawn]


class Batches(torch.utils.data.Dataset):
    """The batches of one stage, by step.

    Scene indices never repeat within a stage and differ between stages, so an interrupted run continues with the very
    batches it would have had.
    """

    def __init__(self, course: Course, stage: Stage, number: int) -> None:
        self.course, self.stage, self.number = course, stage, number

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> Batch:
        course, stage = self.course, self.stage
        first = self.number * STAGE_STRIDE + step * stage.batch
        rng = course.scenes.rng("train", first, course.stream)
        scenes = [course.scenes.draw("train", first + i, stage.grid) for i in range(stage.batch)]
        mix, each = stage.mix_at(step), range(stage.questions)
        asked = [[course.questions.draw_from(mix, scene, rng) for _ in each] for scene in scenes]
        batch = Batch(**course.views.pack(scenes, stage, rng), **pack_questions(asked, course.questions))
        return thin_out(batch, course.views, stage, rng) if rng.random() < stage.sparse else batch


def course_of(name: str) -> Course:
    """The course a configuration names."""
    if name not in _COURSES:
        raise VisionDropError(f"unknown course {name!r}: use one of {', '.join(_COURSES)}.")
    return importlib.import_module(_COURSES[name]).COURSE
