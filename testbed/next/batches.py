"""Training batches of the NeXT-style sibling: a pure function of the stage's settings, its number and the step.

Stages without questions train the tower on views (the base view and one crop of each scene); stages with questions
train the decoder on whole pictures, of whose 2,880 visual tokens it gets a share (`sparse`, `fewest`, `most`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from testbed.data.questions import Question, draw_question
from testbed.data.scenes import NO_COLOR, Scene
from testbed.data.tokenizer import PREFIX
from testbed.next.scenes import BASE_TOKENS, CROP, draw_scene, scene_rng
from testbed.next.views import ORDER, TOKENS, VIEWS, cut
from testbed.training.batches import STAGE_STRIDE, Batch, Stage, object_set, pack_questions


@dataclass(frozen=True)
class NextStage(Stage):
    """One part of the curriculum; `grid` is 24.

    fewest, most: between these the number of visual tokens of a sparse step is drawn, small ones as often as large
    ones on a logarithmic scale.
    """

    fewest: int = 150
    most: int = TOKENS // 2


class NextBatches(torch.utils.data.Dataset):
    """The batches of one stage, by step."""

    def __init__(self, stage: NextStage, number: int) -> None:
        self.stage, self.number = stage, number

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> Batch:
        stage = self.stage
        first = self.number * STAGE_STRIDE + step * stage.batch
        rng = scene_rng("train", first, purpose=3)
        scenes = [draw_scene("train", first + i) for i in range(stage.batch)]
        if not stage.questions:
            return pack_views(scenes, rng)
        asked = [[_draw_from_mix(scene, stage.mix, rng) for _ in range(stage.questions)] for scene in scenes]
        batch = pack(scenes, asked)
        return thin_out(batch, stage, rng) if rng.random() < stage.sparse else batch


def _draw_from_mix(scene: Scene, mix: dict[str, float], rng: np.random.Generator) -> Question:
    kinds = list(mix)
    shares = np.array([mix[kind] for kind in kinds], float)
    for kind in rng.choice(kinds, 6, p=shares / shares.sum()):
        question = draw_question(str(kind), scene, rng)
        if question is not None:
            return question
    return draw_question("exist", scene, rng)


def pack(scenes: list[Scene], asked: list[list[Question]]) -> Batch:
    """Whole pictures with equally many questions each: pixels uint8 [B * 5, 3, 336, 336], labels [B, 2880]."""
    return Batch(
        pixels=torch.from_numpy(np.concatenate([cut(scene.image) for scene in scenes])),
        cells=torch.arange(BASE_TOKENS),
        colors=_stacked([scene.labels.colors for scene in scenes]),
        shapes=_stacked([scene.labels.shapes for scene in scenes]),
        digits=_stacked([scene.labels.digits for scene in scenes]),
        objects=_stacked([object_set(scene.things) for scene in scenes]),
        **pack_questions(asked),
        visual_positions=len(PREFIX) + torch.arange(TOKENS),
        question_start=len(PREFIX) + TOKENS,
    )


def pack_views(scenes: list[Scene], rng: np.random.Generator) -> Batch:
    """The base view and one crop of each scene as pictures of their own: [B * 2, 3, 336, 336], labels [B * 2, 576]."""
    place = ORDER.argsort().reshape(VIEWS, -1).numpy()  # where a view's patches stand in the sequence
    pixels, labels, objects = [], [], []
    for scene in scenes:
        views, tile = cut(scene.image), int(rng.integers(1, VIEWS))
        inside = [t for t in scene.things if 1 + t.y // CROP * 2 + t.x // CROP == tile]
        pixels += [views[0], views[tile]]
        labels += [(scene.labels, place[0]), (scene.labels, place[tile])]
        objects += [object_set(scene.things), object_set(inside)]
    return Batch(
        pixels=_stacked(pixels),
        cells=torch.arange(BASE_TOKENS),
        colors=_stacked([own.colors[at] for own, at in labels]),
        shapes=_stacked([own.shapes[at] for own, at in labels]),
        digits=_stacked([own.digits[at] for own, at in labels]),
        objects=_stacked(objects),
        **pack_questions([[] for _ in pixels]),
        visual_positions=len(PREFIX) + torch.arange(BASE_TOKENS),
        question_start=len(PREFIX) + BASE_TOKENS,
    )


def thin_out(batch: Batch, stage: NextStage, rng: np.random.Generator) -> Batch:
    """A batch whose decoder gets some of the visual tokens, at their own positions or numbered anew.

    Nine in ten object patches go first, then anything at random: no score of any pruning method is involved.
    """
    objects = (batch.colors != NO_COLOR).numpy()
    count = round(stage.fewest * (stage.most / stage.fewest) ** rng.random())
    first = objects & (rng.random(objects.shape) < 0.9)
    kept = torch.from_numpy(np.sort(np.argsort(rng.random(objects.shape) - first, 1)[:, :count], 1))
    if rng.random() < 0.5:
        return replace(batch, kept=kept, visual_positions=batch.visual_positions[kept])
    positions = len(PREFIX) + torch.arange(count)
    return replace(batch, kept=kept, visual_positions=positions, question_start=len(PREFIX) + count)


def _stacked(rows: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows))
