"""The testbed of 672-px scenes (LLaVA-NeXT, layout fixed-2880): views while the tower learns, then whole pictures.

bash scripts/train_testbed.sh --config configs/testbed/next.yaml --out runs/testbed-next

Stages without questions train the tower on the base view and one crop of each scene; stages with questions train the
decoder on whole pictures, of whose 2,880 visual tokens it gets a share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from testbed.data.scenes import Scene
from testbed.data.tokenizer import PREFIX
from testbed.next.scenes import BASE_TOKENS, CROP, SIDE
from testbed.next.sets import FAMILY
from testbed.next.views import ORDER, TOKENS, VIEWS, cut, line_up
from testbed.training.base import labels_of, look, new_weights
from testbed.training.batches import Batch, Seen, Stage, Views, even_on_a_logarithm, object_set, stacked
from testbed.training.course import Course
from testbed.training.export import export_checkpoint
from testbed.training.model import Sizes, Weights

CONTEXT = 4096
SETTINGS = {
    "max_position_embeddings": CONTEXT,
    "tokenizer_model_max_length": CONTEXT,
    "unfreeze_mm_vision_tower": True,
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial",
    "image_grid_pinpoints": [[SIDE, SIDE]],
}


def _placed(tokens: int) -> dict:
    return {
        "cells": torch.arange(BASE_TOKENS),
        "visual_positions": len(PREFIX) + torch.arange(tokens),
        "question_start": len(PREFIX) + tokens,
    }


def whole(scenes: Sequence[Scene]) -> dict:
    """Whole pictures: pixels uint8 [B * 5, 3, 336, 336], labels [B, 2880]."""
    pixels = torch.from_numpy(np.concatenate([cut(scene.image) for scene in scenes]))
    return labels_of(scenes) | _placed(TOKENS) | {"pixels": pixels}


def pack(scenes: Sequence[Scene], stage: Stage, rng: np.random.Generator) -> dict:
    """Whole pictures where questions are asked, else the base view and a crop of each scene as pictures of their own.

    Such views are pixels uint8 [B * 2, 3, 336, 336] with labels [B * 2, 576].
    """
    if stage.questions:
        return whole(scenes)
    place = ORDER.argsort().reshape(VIEWS, -1)  # where a view's patches stand in the sequence
    pixels, rows, objects = [], [], []
    for number, scene in enumerate(scenes):
        views, tile = cut(scene.image), int(rng.integers(1, VIEWS))
        inside = [t for t in scene.things if 1 + t.y // CROP * 2 + t.x // CROP == tile]
        pixels += [views[0], views[tile]]
        rows += [number * TOKENS + place[0], number * TOKENS + place[tile]]
        objects += [object_set(scene.things), object_set(inside)]
    every, at = labels_of(scenes), torch.stack(rows)
    labels = {name: values.flatten()[at] for name, values in every["labels"].items()}
    shown = every["shown"].flatten()[at]
    own = {"pixels": stacked(pixels), "labels": labels, "shown": shown, "objects": stacked(objects)}
    return own | _placed(BASE_TOKENS)


def encode(weights: Weights, sizes: Sizes, batch: Batch) -> Seen:
    """The visual sequence [B, 2880, D] of whole pictures, whose labels are not trained; views as base pictures."""
    seen = look(weights, sizes, batch)
    return Seen(line_up(seen.states)) if batch.question_ids.shape[1] else seen


def export(weights: Weights, sizes: Sizes, folder: Path) -> None:
    """The layout of liuhaotian/llava-v1.6 checkpoints: anyres settings, the tower inside."""
    export_checkpoint(weights, sizes, folder, SETTINGS, tower_inside=True)


COURSE = Course(
    scenes=FAMILY.scenes,
    questions=FAMILY.questions,
    views=Views(pack, whole, encode, even_on_a_logarithm),
    new_weights=new_weights,
    export=export,
    stream=3,
    validation_scenes=48,
    together=2,
    per_kind=3,
)
