"""The testbed of clips, eight 224-px frames in the layout of Video-LLaVA.

bash scripts/train_testbed.sh --config configs/testbed/video.yaml --out runs/video

A clip has 2,056 visual tokens, of which about 220 show an object. Most steps therefore leave background out twice: the
tower computes `places` of the 256 patch positions (all that an object ever touches, then background at random; the same
in all frames, for the attention over time), and the decoder gets some of the tokens, at their own positions. Patch labels
are colour, shape and role (still, moves, appears, changes).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from testbed.data.scenes import NO_COLOR, NO_SHAPE, PATCH
from testbed.data.tokenizer import PREFIX
from testbed.training.batches import CLIP_MEAN, CLIP_STD, Batch, Seen, Stage, Views, stacked
from testbed.training.course import Course
from testbed.training.model import Sizes, Weights, init_heads, init_weights
from testbed.video.export import export_checkpoint
from testbed.video.scenes import FRAMES, GRID, NO_ROLE, PATCHES, TOKENS, Clip, object_set
from testbed.video.sets import FAMILY
from testbed.video.tower import encode_video, temporal_weights

HEADS = {"color": NO_COLOR + 1, "shape": NO_SHAPE + 1, "role": NO_ROLE + 1, "set": NO_COLOR * NO_SHAPE}


def new_weights(sizes: Sizes, seed: int) -> Weights:
    """The testbed's weights, the attention over time and the readouts of the auxiliary losses."""
    return init_weights(sizes, seed) | temporal_weights(sizes, seed + 2) | init_heads(sizes, seed, HEADS)


def some(fewest: int, most: int, rng: np.random.Generator) -> int:
    """A number between these, all equally often."""
    return int(rng.integers(fewest, most + 1))


def draw_places(clips: Sequence[Clip], stage: Stage, rng: np.random.Generator) -> dict:
    """As many patch positions of every clip as the stage says: those any object touches, then others at random."""
    touched = ((clip.labels.roles != NO_ROLE).any(0) for clip in clips)
    count = stage.places or PATCHES
    return pack(clips, np.stack([np.sort(np.argsort(rng.random(PATCHES) - own)[:count]) for own in touched]))


def whole(clips: Sequence[Clip]) -> dict:
    """All patch positions of all frames."""
    return pack(clips, np.tile(np.arange(PATCHES), (len(clips), 1)))


def pack(clips: Sequence[Clip], cells: np.ndarray) -> dict:
    """Clips seen at `cells`, patch positions in raster order [B, K]: pixels uint8 [B, F, K, 588], labels [B, F, K]."""
    pairs = list(zip(clips, cells, strict=True))
    ids = np.concatenate([np.zeros((len(cells), 1), np.int64), 1 + cells], 1)
    tokens = (np.arange(FRAMES)[:, None] * (PATCHES + 1) + ids[:, None]).reshape(len(cells), -1)
    names = ("color", "shape", "role")
    labels = {name: stacked(getattr(clip.labels, f"{name}s")[:, own] for clip, own in pairs) for name in names}
    return {
        "pixels": stacked(clip_patches(clip.frames, own) for clip, own in pairs),
        "cells": torch.from_numpy(cells),
        "labels": labels,
        "shown": labels["role"] != NO_ROLE,
        "objects": stacked(np.stack([object_set(clip, frame) for frame in range(FRAMES)]) for clip in clips),
        "visual_positions": len(PREFIX) + torch.from_numpy(tokens),
        "question_start": len(PREFIX) + TOKENS,
    }


def clip_patches(frames: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Patches of frames (uint8 [F, 224, 224, 3]) at `cells` [K]: uint8 [F, K, 588], a patch's channels one by one."""
    rows = frames.reshape(len(frames), GRID, PATCH, GRID, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    return rows.reshape(len(frames), PATCHES, -1)[:, cells]


def normalised(patches: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [..., 588] to what llava.video.video_pixels gives at full size."""
    mean, std = (torch.tensor(values, device=patches.device)[:, None] for values in (CLIP_MEAN, CLIP_STD))
    return ((patches.unflatten(-1, (3, -1)).float() / 255 - mean) / std).flatten(-2).to(dtype)


def encode(weights: Weights, sizes: Sizes, batch: Batch) -> Seen:
    """Tokens are [CLS] and the patches, frame after frame."""
    pixels = normalised(batch.pixels, weights["model.mm_projector.0.weight"].dtype)
    features, attention = encode_video(weights, sizes, pixels, batch.cells)
    return Seen(features, attention)


COURSE = Course(
    scenes=FAMILY.scenes,
    questions=FAMILY.questions,
    views=Views(draw_places, whole, encode, some, renumbered=False, cls=True, places=True),
    new_weights=new_weights,
    export=export_checkpoint,
    stream=1,
    validation_scenes=32,
    together=1,
    per_kind=2,
)
