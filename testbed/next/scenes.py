"""Drawn scenes of 672 px for the NeXT-style sibling: the base testbed's objects, at their size, in four times the area.

    scene = draw_scene("validation", 0)
    scene.image                                # uint8 [672, 672, 3]
    scene.labels.colors                        # int64 [2880]: base view, then the canvas of the crops, raster order

A crop of 336 px looks like a picture of the base testbed; in the base view, the whole picture squeezed to 336 px, every
object is half as large and its digit can hardly be read. No object crosses the border between two crops. A scene is a
pure function of (version, split, index); each split has background textures of its own.
"""

from __future__ import annotations

import functools

import numpy as np

from testbed.data.scenes import (
    FULL_GRID,
    PATCH,
    SPLITS,
    PatchLabels,
    Scene,
    crop_texture,
    draw_attributes,
    draw_texture,
    paint_things,
    patch_labels,
    place_things,
)
from visiondrop.errors import VisionDropError

VERSION = 1
SIDE = 2 * FULL_GRID * PATCH
CROP = FULL_GRID * PATCH
BASE_TOKENS, CANVAS_TOKENS = FULL_GRID**2, 4 * FULL_GRID**2

_STREAM = 672  # separates these scenes from the base testbed's
_COUNT = (6, 10)
_SIDES = (36, 54)
_TEXTURES = 24
_TEXTURE_SIDE = 2 * 480


def scene_rng(split: str, index: int, purpose: int = 0) -> np.random.Generator:
    """The one generator of a scene; `purpose` separates its streams (0 picture, 1 questions, 2 texture)."""
    if split not in SPLITS:
        raise VisionDropError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    return np.random.default_rng([_STREAM, VERSION, SPLITS[split], purpose, index])


def draw_scene(split: str, index: int, grid: int = FULL_GRID) -> Scene:
    """Scene `index` of `split`; its labels have one entry per visual token of layout fixed-2880. grid: a view's, 24."""
    if grid != FULL_GRID:
        raise VisionDropError(
            f"a grid of {grid} patches is not drawn: use {FULL_GRID}, the patches per side of a view."
        )
    rng = scene_rng(split, index)
    pairs = draw_attributes(rng, int(rng.integers(*_COUNT, endpoint=True)))
    things = place_things(rng, pairs, _SIDES, _spots)
    background = crop_texture(rng, _texture(split, int(rng.integers(_TEXTURES))), SIDE)
    image, mask = paint_things(rng, background, things)
    views = patch_labels(mask[::2, ::2], things, FULL_GRID), patch_labels(mask, things, 2 * FULL_GRID)
    names = PatchLabels.__dataclass_fields__
    labels = PatchLabels(**{name: np.concatenate([getattr(view, name) for view in views]) for name in names})
    return Scene(image, things, labels)


def _spots(rng: np.random.Generator, side: int) -> np.ndarray:
    """Places inside the crops where an object may stand, [60, 2]."""
    corners = CROP * rng.integers(0, 2, (60, 2))
    return corners + rng.integers(side // 2 + 2, CROP - side // 2 - 2, (60, 2))


@functools.lru_cache(maxsize=_TEXTURES * len(SPLITS))
def _texture(split: str, number: int) -> np.ndarray:
    """Texture `number` of a split, uint8 [960, 960, 3]."""
    return draw_texture(scene_rng(split, number, purpose=2), _TEXTURE_SIDE)
