"""Drawn scenes: coloured shapes, some with a digit, on a noisy muted background.

A scene is a pure function of (dataset version, split, index, grid): the same four values give the same pixels, the
same objects and the same patch labels. Each split draws its background from textures of its own.

    scene = draw_scene("validation", 0)          # 336 px: 24 x 24 patches of 14 px
    scene.image                                  # uint8 [336, 336, 3]
    scene.labels.colors                          # int64 [576], 0..7, 8 = background

The training curriculum also asks for smaller pictures (`grid=8`, 10 or 14): a window of the full picture, not a
resized one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from visiondrop.errors import VisionDropError

VERSION = 1
PATCH = 14
FULL_GRID = 24
COLORS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 220, 40),
    "orange": (245, 140, 20),
    "purple": (140, 50, 190),
    "cyan": (50, 210, 220),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
SPLITS = {"train": 1, "validation": 2, "test": 3}
COLOR_NAMES = tuple(COLORS)
NO_COLOR, NO_SHAPE, NO_DIGIT = len(COLORS), len(SHAPES), 10

# Objects per picture and their side in pixels, by grid side in patches: windows hold fewer, slightly smaller objects.
_COUNTS = {8: (3, 4), 10: (4, 5), 14: (5, 6), 24: (5, 9)}
_SIDES = {8: (34, 44), 10: (34, 48), 14: (34, 52), 24: (36, 54)}
_DIGIT_SHARE = 0.75
_LINK_SHARE = 0.6  # an object repeats the colour or the shape of the one before it: material for two and three hops
_CROWD_SHARE = 0.3  # three or four objects share an attribute: material for counting
_LABEL_COVER = 0.2  # a patch belongs to an object that covers at least this share of it
_TEXTURES = 48
_TEXTURE_SIDE = 480

# 5 x 7 bitmaps, one row of bits per line; drawn by us so that no font file or font version enters the pixels.
_GLYPHS = (
    (14, 17, 17, 17, 17, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 6, 8, 16, 31),
    (30, 1, 1, 14, 1, 1, 30),
    (17, 17, 17, 31, 1, 1, 1),
    (31, 16, 16, 30, 1, 1, 30),
    (14, 16, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 1, 14),
)


@dataclass(frozen=True)
class Thing:
    """One object: names of colour and shape, digit 0..9 or None, centre and side in pixels."""

    color: str
    shape: str
    digit: int | None
    x: int
    y: int
    side: int


@dataclass(frozen=True)
class PatchLabels:
    """What each patch shows, raster order, int64 [grid * grid]; the last class of each means "nothing"."""

    colors: np.ndarray
    shapes: np.ndarray
    digits: np.ndarray
    things: np.ndarray  # number of the object, -1 for background


@dataclass(frozen=True)
class Scene:
    """A picture (uint8 [side, side, 3]), its objects and its patch labels."""

    image: np.ndarray
    things: tuple[Thing, ...]
    labels: PatchLabels


def scene_rng(split: str, index: int, purpose: int = 0) -> np.random.Generator:
    """The one generator of a scene; `purpose` separates its streams (0 picture, 1 questions, 2 texture)."""
    if split not in SPLITS:
        raise VisionDropError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    return np.random.default_rng([VERSION, SPLITS[split], purpose, index])


def draw_scene(split: str, index: int, grid: int = FULL_GRID) -> Scene:
    """Scene `index` of `split` with `grid` x `grid` patches (8, 10, 14 or 24)."""
    if grid not in _COUNTS:
        raise VisionDropError(f"a grid of {grid} patches is not drawn: use one of {sorted(_COUNTS)}.")
    rng = scene_rng(split, index)
    size = grid * PATCH
    pairs = draw_attributes(rng, int(rng.integers(*_COUNTS[grid], endpoint=True)))
    things = place_things(
        rng, pairs, _SIDES[grid], lambda rng, side: rng.integers(side // 2 + 1, size - side // 2 - 1, (60, 2))
    )
    image, mask = paint_things(rng, draw_background(rng, split, size), things)
    return Scene(image, things, patch_labels(mask, things, grid))


def paint_things(rng: np.random.Generator, background: np.ndarray, things: tuple[Thing, ...]):
    """Objects on a background (uint8 [side, side, 3]): the picture, and a mask of object numbers + 1 [side, side]."""
    canvas, mask = Image.fromarray(background), Image.new("L", background.shape[1::-1])
    draw, draw_mask = ImageDraw.Draw(canvas), ImageDraw.Draw(mask)
    for number, thing in enumerate(things):
        tint = tuple(int(v) for v in np.clip(np.array(COLORS[thing.color]) + rng.integers(-18, 19, 3), 0, 255))
        draw_shape(draw, thing, tint)
        draw_shape(draw_mask, thing, number + 1)
        if thing.digit is not None:
            draw_digit(draw, thing)
    return np.asarray(canvas), np.asarray(mask)


def draw_attributes(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """`count` different (colour, shape) pairs in which repeated colours and shapes are common."""
    pairs: list[tuple[int, int]] = []
    if rng.random() < _CROWD_SHARE:
        size = min(count, int(rng.integers(3, 5)))
        if rng.random() < 0.5:
            pairs = [(int(rng.integers(8)), int(s)) for s in [rng.integers(6)] * size]
            colors = rng.permutation(8)[:size]
            pairs = [(int(c), pairs[0][1]) for c in colors]
        else:
            color = int(rng.integers(8))
            pairs = [(color, int(s)) for s in rng.permutation(6)[:size]]
    while len(pairs) < count:
        color, shape = int(rng.integers(8)), int(rng.integers(6))
        if pairs and rng.random() < _LINK_SHARE:
            if rng.random() < 0.5:
                color = pairs[-1][0]
            else:
                shape = pairs[-1][1]
        if (color, shape) not in pairs:
            pairs.append((color, shape))
    return pairs


def place_things(
    rng: np.random.Generator,
    pairs: list[tuple[int, int]],
    sides: tuple[int, int],
    spots: Callable[[np.random.Generator, int], np.ndarray],
) -> tuple[Thing, ...]:
    """Non-overlapping objects of the pairs; one that finds no place among its 60 `spots` (of its side) is left out."""
    digits = rng.permutation(10)
    things: list[Thing] = []
    for number, (color, shape) in enumerate(pairs):
        digit = int(digits[number]) if rng.random() < _DIGIT_SHARE else None
        side = int(rng.integers(*sides, endpoint=True))
        for x, y in spots(rng, side):
            gap = [max(abs(x - t.x), abs(y - t.y)) - (side + t.side) / 2 for t in things]
            if not gap or min(gap) >= 2:
                things.append(Thing(COLOR_NAMES[color], SHAPES[shape], digit, int(x), int(y), side))
                break
    return tuple(things)


@functools.lru_cache(maxsize=_TEXTURES * len(SPLITS))
def _texture(split: str, number: int) -> np.ndarray:
    """Texture `number` of a split, uint8 [480, 480, 3]."""
    return draw_texture(scene_rng(split, number, purpose=2), _TEXTURE_SIDE)


def draw_texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Blurred colour noise, stripes, strokes and pixel noise, uint8 [side, side, 3]; as dense at any size."""
    scale = side / _TEXTURE_SIDE
    coarse = rng.integers(60, 190, (round(8 * scale), round(8 * scale), 3)).astype(np.uint8)
    canvas = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for _ in range(round(70 * scale**2)):
        x, y = rng.integers(0, side, 2)
        dx, dy = rng.integers(-60, 61, 2)
        color = tuple(int(v) for v in rng.integers(50, 200) + rng.integers(-25, 26, 3))
        if rng.random() < 0.6:
            draw.line((x, y, x + dx, y + dy), fill=color, width=int(rng.integers(1, 5)))
        else:
            draw.ellipse((x, y, x + abs(dx) // 4 + 2, y + abs(dy) // 4 + 2), fill=color)
    pixels = np.asarray(canvas, np.float32)
    gray = pixels.mean(-1, keepdims=True)
    ramp = np.arange(side) * rng.uniform(0.05, 0.4)
    stripes = 12 * np.sin(ramp[:, None] * rng.uniform(-1, 1) + ramp[None, :])[..., None]
    noisy = gray + 0.45 * (pixels - gray) + stripes + rng.normal(0, 7, (side, side, 1))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def draw_background(rng: np.random.Generator, split: str, side: int) -> np.ndarray:
    """A crop of one of the split's textures, perhaps mirrored, uint8 [side, side, 3]."""
    return crop_texture(rng, _texture(split, int(rng.integers(_TEXTURES))), side)


def crop_texture(rng: np.random.Generator, texture: np.ndarray, side: int) -> np.ndarray:
    """A crop of a texture (uint8 [S, S, 3], S > side), perhaps mirrored, uint8 [side, side, 3]."""
    top, left = rng.integers(0, len(texture) - side, 2)
    crop = texture[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.5:
        crop = crop.transpose(1, 0, 2)
    return np.ascontiguousarray(crop)


@functools.cache
def _outline(shape: str) -> np.ndarray:
    """Corners of a shape in units of half its side, float [corners, 2]."""
    if shape == "star":
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        radius = np.where(np.arange(10) % 2 == 0, 1.1, 0.5)
        return np.stack([np.cos(angles) * radius, np.sin(angles) * radius + 0.08], 1)
    corners = {
        "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        "triangle": [(0, -1), (1, 0.9), (-1, 0.9)],
        "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
        "cross": [
            (-0.36, -1),
            (0.36, -1),
            (0.36, -0.36),
            (1, -0.36),
            (1, 0.36),
            (0.36, 0.36),
            (0.36, 1),
            (-0.36, 1),
            (-0.36, 0.36),
            (-1, 0.36),
            (-1, -0.36),
            (-0.36, -0.36),
        ],
    }
    return np.array(corners[shape], float)


def outline_box(thing: Thing) -> list[float]:
    """Edges [x1, y1, x2, y2] of an object's outline, in pixels."""
    half, centre = thing.side / 2, (thing.x, thing.y)
    corners = np.array([[-1, -1], [1, 1]]) if thing.shape == "circle" else _outline(thing.shape)
    return [float(edge) for ends in (corners.min(0), corners.max(0)) for edge in ends * half + centre]


def draw_shape(draw: ImageDraw.ImageDraw, thing: Thing, fill) -> None:
    """Fills the object's outline; its digit is drawn by `draw_digit`."""
    half = thing.side / 2
    if thing.shape == "circle":
        draw.ellipse((thing.x - half, thing.y - half, thing.x + half, thing.y + half), fill=fill)
    else:
        points = _outline(thing.shape) * half + (thing.x, thing.y)
        draw.polygon([tuple(p) for p in points], fill=fill)


def draw_digit(draw: ImageDraw.ImageDraw, thing: Thing) -> None:
    """The digit in black or white, whichever stands out, its cells 0.09 of the object's side."""
    ink = (15, 15, 15) if sum(COLORS[thing.color]) > 380 else (250, 250, 250)
    cell = thing.side * 0.09
    left, top = thing.x - 2.5 * cell, thing.y - 3.5 * cell + (0.1 * thing.side if thing.shape == "triangle" else 0)
    for row, bits in enumerate(_GLYPHS[thing.digit]):
        for column in range(5):
            if bits >> (4 - column) & 1:
                x, y = left + column * cell, top + row * cell
                draw.rectangle((round(x), round(y), round(x + cell) - 1, round(y + cell) - 1), fill=ink)


def patch_labels(mask: np.ndarray, things: tuple[Thing, ...], grid: int) -> PatchLabels:
    """Labels from the object mask (uint8 [side, side], object number + 1), read on every second pixel."""
    cells = mask[::2, ::2].reshape(grid, PATCH // 2, grid, PATCH // 2)
    cover = np.stack([(cells == number + 1).mean((1, 3)) for number in range(len(things))]).reshape(len(things), -1)
    best = cover.argmax(0)
    owner = np.where(cover.max(0) >= _LABEL_COVER, best, -1)

    def spread(values: list[int], nothing: int) -> np.ndarray:
        return np.array(values + [nothing], np.int64)[owner]

    return PatchLabels(
        spread([COLOR_NAMES.index(t.color) for t in things], NO_COLOR),
        spread([SHAPES.index(t.shape) for t in things], NO_SHAPE),
        spread([NO_DIGIT if t.digit is None else t.digit for t in things], NO_DIGIT),
        owner.astype(np.int64),
    )
