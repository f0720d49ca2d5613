"""What the trainer needs to know of a model: its weights, batches, losses, validation and export.

`BaseCourse` is the testbed's own. The siblings (testbed.next, testbed.video) bring courses of the same
shape; a training configuration names one with `course:` and may name a checkpoint to begin from with `start:`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

import torch

from testbed.data.questions import KINDS, draw_question
from testbed.data.scenes import FULL_GRID, draw_scene, scene_rng
from testbed.training.batches import Batches, Stage, pack
from testbed.training.export import export_checkpoint
from testbed.training.losses import compute_losses, to_device
from testbed.training.model import Sizes, Weights, init_heads, init_weights
from visiondrop.errors import VisionDropError

VALIDATION_IMAGES, VALIDATION_START = 96, 500_000  # scenes of the validation split that no question set uses


class Course(Protocol):
    """One kind of model and the questions it learns to answer."""

    stage_class: type[Stage]

    def new_weights(self, sizes: Sizes, seed: int) -> Weights:
        """Fresh float32 parameters, those of the auxiliary losses ("aux.*") included."""

    def batches(self, stage: Stage, number: int) -> torch.utils.data.Dataset:
        """Batches by step; a pure function of the stage, its number and the step."""

    def losses(self, weights: Weights, sizes: Sizes, batch, stage: Stage, dtype: torch.dtype, device: torch.device):
        """(loss with gradient, plain numbers for the log by name)."""

    def validate(self, weights: Weights, sizes: Sizes, stage: Stage, dtype: torch.dtype, device: torch.device) -> dict:
        """Accuracy by kind at the full token count."""

    def export(self, weights: Weights, sizes: Sizes, folder: Path) -> None:
        """Writes the checkpoint in its original layout, float16."""


class BaseCourse:
    """The testbed of 336-px scenes (LLaVA-1.5)."""

    stage_class = Stage

    def new_weights(self, sizes: Sizes, seed: int) -> Weights:
        return init_weights(sizes, seed) | init_heads(sizes, seed)

    def batches(self, stage: Stage, number: int) -> Batches:
        return Batches(stage, number)

    def losses(self, weights: Weights, sizes: Sizes, batch, stage: Stage, dtype: torch.dtype, device: torch.device):
        return compute_losses(weights, sizes, to_device(batch, device), stage, dtype)

    def validate(self, weights: Weights, sizes: Sizes, stage: Stage, dtype: torch.dtype, device: torch.device) -> dict:
        right: dict[str, list[float]] = {}
        stage = Stage("validation", FULL_GRID, 1, 8, questions=1, bridge=0.0, depth=stage.depth)
        for first in range(VALIDATION_START, VALIDATION_START + VALIDATION_IMAGES, stage.batch):
            scenes = [draw_scene("validation", first + i) for i in range(stage.batch)]
            asked = []
            for i, scene in enumerate(scenes):
                rng = scene_rng("validation", first + i, purpose=1)
                drawn = [draw_question(kind, scene, rng) for kind in KINDS for _ in range(2)]
                asked.append([question or draw_question("exist", scene, rng) for question in drawn])
            batch = pack(scenes, asked, FULL_GRID, (0, 0), renumber=False)
            _, report = self.losses(weights, sizes, batch, stage, dtype, device)
            for name, value in report.items():
                right.setdefault(name, []).append(float(value))
        return {name: sum(values) / len(values) for name, values in right.items()}

    def export(self, weights: Weights, sizes: Sizes, folder: Path) -> None:
        export_checkpoint(weights, sizes, folder)


_COURSES = {
    "base": ("testbed.training.course", "BaseCourse"),
    "next": ("testbed.next.course", "NextCourse"),
    "video": ("testbed.video.course", "VideoCourse"),
}


def course_of(name: str) -> Course:
    """The course a configuration names."""
    if name not in _COURSES:
        raise VisionDropError(f"unknown course {name!r}: use one of {', '.join(_COURSES)}.")
    module, symbol = _COURSES[name]
    return getattr(importlib.import_module(module), symbol)()


def begin_from(weights: Weights, folder: Path) -> Weights:
    """`weights` with the values of a testbed checkpoint wherever name and shape agree.

    Of the word embeddings and the output head the rows that both have are taken: a sibling's vocabulary is the
    testbed's with words added at the end.
    """
    from testbed.cards.measure import load_weights

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
