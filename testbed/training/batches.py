"""Training batches: a pure function of the stage's settings, its number and the step.

`Batches(stage, number)[step]` draws `batch` scenes, picks questions of each and packs them; scene indices never repeat
within a stage and differ between stages, so an interrupted run continues with the very batches it would have had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from testbed.data.questions import TRAINING_KINDS, Question, draw_question
from testbed.data.scenes import (
    COLOR_NAMES,
    FULL_GRID,
    NO_COLOR,
    NO_DIGIT,
    NO_SHAPE,
    SHAPES,
    Scene,
    Thing,
    draw_scene,
    scene_rng,
)
from testbed.data.tokenizer import EOS, IDS, PAD, PREFIX, question_ids

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IGNORE = -100
STAGE_STRIDE = 10**9  # scene indices of stage n start at n times this


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum.

    grid: patches per side; questions: per image, 0 trains the tower alone; mix: share of each kind; long_mix takes its
    place on every `long_every`-th step (three-hop questions are long, and the longest question sets the packed length);
    rate, end_rate: learning rate at the start (after `warmup` steps) and at the end, a straight line between;
    labels: weight of the patch-label and object-set losses; bridge: weight of the losses on the hops' results;
    depth: decoder layers that are run, 0 for all of them; sparse: share of the steps in which the decoder gets only
    some of the visual tokens (see `sparse_tokens`), as a pruned model does; frozen: the tower is not trained.
    """

    name: str
    grid: int
    steps: int
    batch: int
    questions: int = 0
    mix: dict[str, float] = field(default_factory=dict)
    long_mix: dict[str, float] = field(default_factory=dict)
    long_every: int = 0
    rate: float = 1e-3
    end_rate: float = 1e-3
    warmup: int = 100
    labels: float = 1.0
    bridge: float = 0.3
    depth: int = 0
    sparse: float = 0.0
    frozen: bool = False


@dataclass(frozen=True)
class Batch:
    """One packed batch; int64 unless said otherwise. B images, V patches, Q questions, T tokens.

    pixels uint8 [B, 3, side, side]; cells [V]; colors, shapes, digits [B, V]; objects float [B, 58]: which of the 48
    colour-shape pairs and 10 digits are in the picture; question_ids [B, Q, T]; answer_at [B, Q]: the place whose
    next token is the answer; answers [B, Q]; bridges [B, Q, 2]: the words that the
    first and the second hop lead to (IGNORE where there is none); kinds [B, Q]: number in
    TRAINING_KINDS; visual_positions and question_start: see model.Layout; kept [B, K]: raster numbers of the visual
    tokens the decoder gets, ascending, None for all of them.
    """

    pixels: torch.Tensor
    cells: torch.Tensor
    colors: torch.Tensor
    shapes: torch.Tensor
    digits: torch.Tensor
    objects: torch.Tensor
    question_ids: torch.Tensor
    answer_at: torch.Tensor
    answers: torch.Tensor
    bridges: torch.Tensor
    kinds: torch.Tensor
    visual_positions: torch.Tensor
    question_start: int
    kept: torch.Tensor | None = None


class Batches(torch.utils.data.Dataset):
    """The batches of one stage, by step."""

    def __init__(self, stage: Stage, number: int, split: str = "train") -> None:
        self.stage, self.number, self.split = stage, number, split

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> Batch:
        stage = self.stage
        first = self.number * STAGE_STRIDE + step * stage.batch
        rng = scene_rng(self.split, first, purpose=1)
        scenes = [draw_scene(self.split, first + i, stage.grid) for i in range(stage.batch)]
        long = bool(stage.long_every) and step % stage.long_every == 0
        mix = stage.long_mix if long else stage.mix
        asked = [[_draw_from_mix(scene, mix, rng) for _ in range(stage.questions)] for scene in scenes]
        row, column = rng.integers(0, FULL_GRID - stage.grid + 1, 2)
        # windows are seen half the time at their places in the full picture and half the time as a short picture
        batch = pack(scenes, asked, stage.grid, (int(row), int(column)), renumber=bool(rng.random() < 0.5))
        return thin_out(batch, rng) if rng.random() < stage.sparse else batch


def sparse_tokens(objects: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Visual tokens of a thinned-out batch, ascending, int64 [B, K]; objects: bool [B, V], patches of any object.

    K is drawn between 48 and V / 2, small ones as often as large ones on a logarithmic scale. Nine in ten object
    patches go first, then anything at random: no score of any pruning method is involved.
    """
    visual = objects.shape[1]
    count = round(48 * (visual / 96) ** rng.random())
    first = objects & (rng.random(objects.shape) < 0.9)
    return np.sort(np.argsort(rng.random(objects.shape) - first, 1)[:, :count], 1)


def thin_out(batch: Batch, rng: np.random.Generator) -> Batch:
    """A batch of full pictures whose decoder gets `sparse_tokens`, at their own positions or numbered anew."""
    kept = torch.from_numpy(sparse_tokens((batch.colors != NO_COLOR).numpy(), rng))
    if rng.random() < 0.5:
        return replace(batch, kept=kept, visual_positions=batch.visual_positions[kept])
    count = kept.shape[1]
    positions = len(PREFIX) + torch.arange(count)
    return replace(batch, kept=kept, visual_positions=positions, question_start=len(PREFIX) + count)


def _draw_from_mix(scene: Scene, mix: dict[str, float], rng: np.random.Generator) -> Question:
    kinds = list(mix)
    shares = np.array([mix[kind] for kind in kinds], float)
    for kind in rng.choice(kinds, 6, p=shares / shares.sum()):
        question = draw_question(str(kind), scene, rng)
        if question is not None:
            return question
    return draw_question("exist", scene, rng)


def pack(scenes: list[Scene], asked: list[list[Question]], grid: int, corner: tuple[int, int], renumber: bool) -> Batch:
    """Tensors of some scenes with equally many questions each; `corner` is the window's place in the full grid."""
    lines = np.arange(grid)
    cells = ((corner[0] + lines)[:, None] * FULL_GRID + corner[1] + lines).reshape(-1)
    short = renumber and grid < FULL_GRID
    positions = len(PREFIX) + (np.arange(grid * grid) if short else cells)
    images = np.stack([scene.image for scene in scenes]).transpose(0, 3, 1, 2)
    return Batch(
        pixels=torch.from_numpy(np.ascontiguousarray(images)),
        cells=torch.from_numpy(cells),
        colors=torch.from_numpy(np.stack([s.labels.colors for s in scenes])),
        shapes=torch.from_numpy(np.stack([s.labels.shapes for s in scenes])),
        digits=torch.from_numpy(np.stack([s.labels.digits for s in scenes])),
        objects=torch.from_numpy(np.stack([object_set(s.things) for s in scenes])),
        **pack_questions(asked),
        visual_positions=torch.from_numpy(positions),
        question_start=len(PREFIX) + (grid * grid if short else FULL_GRID * FULL_GRID),
    )


def pack_questions(asked: list[list[Question]]) -> dict[str, torch.Tensor]:
    """The question fields of a `Batch`."""
    words = [[question_ids(question.text) for question in row] for row in asked]
    shape = (len(asked), len(asked[0]))
    length = 1 + max((len(ids) for row in words for ids in row), default=0)
    ids = torch.full((*shape, length), IDS[PAD])
    place, answers, kinds = (torch.full(shape, IGNORE) for _ in range(3))
    bridges = torch.full((*shape, 2), IGNORE)
    for i, row in enumerate(asked):
        for j, question in enumerate(row):
            text = words[i][j]
            ids[i, j, : len(text) + 1] = torch.tensor([*text, IDS[question.answer]])
            place[i, j] = len(text) - 1
            answers[i, j] = IDS[question.answer]
            for hop, word in enumerate(question.bridges):
                bridges[i, j, hop] = IDS[word]
            kinds[i, j] = TRAINING_KINDS.index(question.kind)
    return {"question_ids": ids, "answer_at": place, "answers": answers, "bridges": bridges, "kinds": kinds}


def object_set(things: Sequence[Thing]) -> np.ndarray:
    """Which of the 48 colour-shape pairs and 10 digits are among some objects, float32 [58]."""
    present = np.zeros(NO_COLOR * NO_SHAPE + NO_DIGIT, np.float32)
    for thing in things:
        present[COLOR_NAMES.index(thing.color) * NO_SHAPE + SHAPES.index(thing.shape)] = 1
        if thing.digit is not None:
            present[NO_COLOR * NO_SHAPE + thing.digit] = 1
    return present


def normalise(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [B, 3, H, W] to what CLIP's image processor gives."""
    mean = torch.tensor(CLIP_MEAN, device=pixels.device)[:, None, None]
    std = torch.tensor(CLIP_STD, device=pixels.device)[:, None, None]
    return ((pixels.float() / 255 - mean) / std).to(dtype)


END_ID = IDS[EOS]
