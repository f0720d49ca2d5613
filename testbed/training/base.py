"""The testbed of 336-px scenes (LLaVA-1.5): windows of a picture while the tower learns, whole pictures in the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from testbed.data.material import QUESTIONS, SCENES
from testbed.data.scenes import FULL_GRID, NO_COLOR, Scene
from testbed.data.tokenizer import PREFIX
from testbed.training.batches import (
    Batch,
    Seen,
    Stage,
    Views,
    even_on_a_logarithm,
    normalise,
    object_set,
    stacked,
)
from testbed.training.course import Course
from testbed.training.export import export_checkpoint
from testbed.training.model import Sizes, Weights, encode, init_heads, init_weights


def new_weights(sizes: Sizes, seed: int) -> Weights:
    """The model and the readouts of the auxiliary losses."""
    return init_weights(sizes, seed) | init_heads(sizes, seed)


def labels_of(scenes: Sequence[Scene]) -> dict:
    """The label fields of a `Batch` [B, V], of scenes whose labels stand in the order of their tokens."""
    names = ("color", "shape", "digit")
    labels = {name: stacked(getattr(scene.labels, f"{name}s") for scene in scenes) for name in names}
    objects = stacked(object_set(scene.things) for scene in scenes)
    return {"labels": labels, "shown": labels["color"] != NO_COLOR, "objects": objects}


def pack(scenes: Sequence[Scene], grid: int, corner: tuple[int, int], renumber: bool) -> dict:
    """Pictures [B, 3, side, side] of `grid` patches a side; `corner` is the window's place in the full grid."""
    lines = np.arange(grid)
    cells = ((corner[0] + lines)[:, None] * FULL_GRID + corner[1] + lines).reshape(-1)
    short = renumber and grid < FULL_GRID
    images = np.stack([scene.image for scene in scenes]).transpose(0, 3, 1, 2)
    return labels_of(scenes) | {
        "pixels": torch.from_numpy(np.ascontiguousarray(images)),
        "cells": torch.from_numpy(cells),
        "visual_positions": torch.from_numpy(len(PREFIX) + (np.arange(grid * grid) if short else cells)),
        "question_start": len(PREFIX) + (grid * grid if short else FULL_GRID * FULL_GRID),
    }


def draw_window(scenes: Sequence[Scene], stage: Stage, rng: np.random.Generator) -> dict:
    """Windows, half the time at their places in the full picture and half the time as short pictures."""
    row, column = rng.integers(0, FULL_GRID - stage.grid + 1, 2)
    return pack(scenes, stage.grid, (int(row), int(column)), renumber=bool(rng.random() < 0.5))


def whole(scenes: Sequence[Scene]) -> dict:
    """Full pictures."""
    return pack(scenes, FULL_GRID, (0, 0), renumber=False)


def look(weights: Weights, sizes: Sizes, batch: Batch) -> Seen:
    """The tower's patch features, which are the visual tokens."""
    pixels = normalise(batch.pixels, weights["model.mm_projector.0.weight"].dtype)
    features, cls, attention = encode(weights, sizes, pixels, batch.cells)
    return Seen(features, attention, cls)


COURSE = Course(
    scenes=SCENES,
    questions=QUESTIONS,
    views=Views(draw_window, whole, look, even_on_a_logarithm),
    new_weights=new_weights,
    export=export_checkpoint,
    stream=1,
    validation_scenes=96,
    together=8,
    per_kind=2,
)
