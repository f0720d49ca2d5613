"""Drawn clips: coloured shapes over a still background; one moves, one appears, one changes its colour.

A clip is a pure function of (version, split, index).  Backgrounds are those of the testbed's scenes, whose splits share
none.

    clip = draw_clip("validation", 0)
    clip.frames                       # uint8 [8, 224, 224, 3]
    clip.labels.roles                 # int64 [8, 256]: 0 still, 1 moves, 2 appears, 3 changes, 4 background

What appears is there for one or two frames, and what changes has its other colour for one or two, at any time after the
first frame, so that the evidence is in few of the 2,056 visual tokens; what moves does so from the first frame to the
last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from testbed.data.scenes import (
    COLOR_NAMES,
    COLORS,
    NO_COLOR,
    NO_SHAPE,
    PATCH,
    SHAPES,
    SPLITS,
    Thing,
    draw_background,
    draw_shape,
    patch_labels,
)
from visiondrop.errors import VisionDropError

VERSION = 2
FRAMES, GRID = 8, 16
SIDE, PATCHES = GRID * PATCH, GRID * GRID
TOKENS = FRAMES * (PATCHES + 1)  # with the [CLS] of every frame
ROLES = ("still", "moves", "appears", "changes")
NO_ROLE = len(ROLES)

_EVENT_SHARE = 0.9
_SIDES = (34, 48)
_TRAVEL = (70, 120)  # pixels from the first frame to the last
_LASTS = (1, 2)  # frames that an appearance or a change of colour lasts
_TRIES = 80


@dataclass(frozen=True)
class Actor:
    """One object of a clip.

    color, shape: names; role: one of ROLES; other: the colour it takes on, "" unless it changes; event: the frames in
    which it is there (appears) or has the other colour (changes), else none; side: pixels; path: its centre in every
    frame.
    """

    color: str
    shape: str
    role: str
    other: str
    event: tuple[int, ...]
    side: int
    path: tuple[tuple[int, int], ...]

    def seen(self, frame: int) -> Thing | None:
        """What stands in a frame, or None while it has not appeared or is gone."""
        if self.role == "appears" and frame not in self.event:
            return None
        color = self.other if self.role == "changes" and frame in self.event else self.color
        return Thing(color, self.shape, None, *self.path[frame], self.side)


@dataclass(frozen=True)
class ClipLabels:
    """What each patch of each frame shows, int64 [8, 256]; the last class of each means "nothing"."""

    colors: np.ndarray
    shapes: np.ndarray
    roles: np.ndarray
    actors: np.ndarray  # number of the actor, -1 for background


@dataclass(frozen=True)
class Clip:
    """Frames (uint8 [8, 224, 224, 3]), their objects and their patch labels."""

    frames: np.ndarray
    actors: tuple[Actor, ...]
    labels: ClipLabels


def clip_rng(split: str, index: int, purpose: int = 0) -> np.random.Generator:
    """The one generator of a clip; `purpose` separates its streams (0 picture, 1 questions)."""
    if split not in SPLITS:
        raise VisionDropError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    return np.random.default_rng([VERSION, FRAMES, SPLITS[split], purpose, index])


def draw_clip(split: str, index: int, grid: int = GRID) -> Clip:
    """Clip `index` of `split`; grid: patches per side of a frame, 16."""
    if grid != GRID:
        raise VisionDropError(f"a grid of {grid} patches is not drawn: use {GRID}, the patches per side of a frame.")
    rng = clip_rng(split, index)
    actors = _cast(rng)
    background = draw_background(rng, split, SIDE)
    shift = rng.integers(-18, 19, (len(actors), 3))  # every object has a tint of its own, the same in all frames
    frames, labels = [], []
    for frame in range(FRAMES):
        canvas, mask = Image.fromarray(background), Image.new("L", (SIDE, SIDE))
        draw, draw_mask = ImageDraw.Draw(canvas), ImageDraw.Draw(mask)
        seen = [actor.seen(frame) for actor in actors]
        for number, thing in enumerate(seen):
            if thing is not None:
                tint = np.clip(np.array(COLORS[thing.color]) + shift[number], 0, 255)
                draw_shape(draw, thing, tuple(int(value) for value in tint))
                draw_shape(draw_mask, thing, number + 1)
        frames.append(np.asarray(canvas))
        # one that is not there covers no patch: what it would look like does not matter
        things = tuple(thing or actor.seen(actor.event[0]) for thing, actor in zip(seen, actors, strict=True))
        labels.append(patch_labels(np.asarray(mask), things, GRID))
    owners = np.stack([label.things for label in labels])
    roles = np.array([ROLES.index(actor.role) for actor in actors] + [NO_ROLE], np.int64)[owners]
    colors, shapes = np.stack([label.colors for label in labels]), np.stack([label.shapes for label in labels])
    return Clip(np.stack(frames), actors, ClipLabels(colors, shapes, roles, owners))


def object_set(clip: Clip, frame: int) -> np.ndarray:
    """Which of the 48 pairs of colour and shape a frame shows, float32 [48]."""
    present = np.zeros(NO_COLOR * NO_SHAPE, np.float32)
    for actor in clip.actors:
        thing = actor.seen(frame)
        if thing is not None:
            present[COLOR_NAMES.index(thing.color) * NO_SHAPE + SHAPES.index(thing.shape)] = 1
    return present


def _cast(rng: np.random.Generator) -> tuple[Actor, ...]:
    """Three to five objects of different colours, at most one of each eventful role, none in another's way."""
    count = int(rng.integers(3, 6))
    events = [role for role in ROLES[1:] if rng.random() < _EVENT_SHARE]
    roles = (events + ["still"] * count)[:count]
    colors = rng.permutation(len(COLOR_NAMES))
    shapes = _shapes(rng, count)
    actors: list[Actor] = []
    for number, role in enumerate(roles):
        side = int(rng.integers(*_SIDES, endpoint=True))
        path = _path(rng, role, side, actors)
        if path is None:
            continue
        other = COLOR_NAMES[colors[-1]] if role == "changes" else ""
        event = _event(rng) if role in ("appears", "changes") else ()
        actors.append(Actor(COLOR_NAMES[colors[number]], SHAPES[shapes[number]], role, other, event, side, path))
    return tuple(actors)


def _event(rng: np.random.Generator) -> tuple[int, ...]:
    """One or two neighbouring frames, the first one never among them."""
    length = int(rng.choice(_LASTS))
    first = int(rng.integers(1, FRAMES - length + 1))
    return tuple(range(first, first + length))


def _shapes(rng: np.random.Generator, count: int) -> list[int]:
    """Numbers of the objects' shapes: all different, or (a third of the clips) drawn freely."""
    free = rng.integers(0, len(SHAPES), count)
    return (free if rng.random() < 1 / 3 else rng.permutation(len(SHAPES))[:count]).tolist()


def _path(rng: np.random.Generator, role: str, side: int, actors: list[Actor]) -> tuple[tuple[int, int], ...] | None:
    """Centres in the eight frames, inside the picture and clear of the other objects; None when no try fits."""
    low, high = side // 2 + 1, SIDE - side // 2 - 1
    for _ in range(_TRIES):
        start = rng.integers(low, high, 2)
        way = np.zeros(2)
        if role == "moves":
            angle = rng.uniform(0, 2 * np.pi)
            way = rng.uniform(*_TRAVEL) * np.array([np.cos(angle), np.sin(angle)])
        path = np.rint(start + np.linspace(0, 1, FRAMES)[:, None] * way).astype(int)
        if path.min() < low or path.max() >= high:
            continue
        if all(np.abs(path - other.path).max(1).min() >= (side + other.side) / 2 + 2 for other in actors):
            return tuple((int(x), int(y)) for x, y in path)
    return None
