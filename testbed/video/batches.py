"""Training batches of the video sibling: a pure function of the stage's settings, its number and the step.

A clip has 2,056 visual tokens, of which about 220 show an object.  Most steps therefore leave background out twice: the
tower computes `places` of the 256 patch positions (all that an object ever touches, then background at random; the same
in all frames, for the attention over time), and the decoder gets some of the tokens, at their own positions.  No score
of any pruning method is involved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from testbed.data.questions import Question
from testbed.data.scenes import PATCH
from testbed.data.tokenizer import EOS, PAD, PREFIX
from testbed.training.batches import IGNORE, STAGE_STRIDE, Stage
from testbed.video.questions import KINDS, draw_question
from testbed.video.scenes import FRAMES, GRID, NO_ROLE, PATCHES, Clip, clip_rng, draw_clip, object_set
from testbed.video.tokenizer import IDS, question_ids

TOKENS = FRAMES * (PATCHES + 1)
END_ID = IDS[EOS]


@dataclass(frozen=True)
class VideoStage(Stage):
    """One part of the curriculum; `grid` is 16.

    places: patch positions that the tower computes, 0 for all 256; fewest, most: the number of visual tokens that the
    decoder gets in a share `sparse` of the steps is drawn between these; in the others it gets all that were computed.
    """

    places: int = 0
    fewest: int = 0
    most: int = 0


@dataclass(frozen=True)
class VideoBatch:
    """One packed batch; int64 unless said otherwise.

    B clips, F frames, K places, N visual tokens, Q questions of T words.

    patches: uint8 [B, F, K, 588]; cells [B, K]; colors, shapes, roles [B, F, K]; objects: float [B, F, 48]; kept: rows
    among the F (1 + K) features that the decoder gets [B, N], None for all; visual_positions [B, N] and question_start:
    see model.Layout; question_ids [B, Q, T]; answer_at, answers, kinds [B, Q]: as in testbed.training.batches.Batch.
    """

    patches: torch.Tensor
    cells: torch.Tensor
    colors: torch.Tensor
    shapes: torch.Tensor
    roles: torch.Tensor
    objects: torch.Tensor
    kept: torch.Tensor | None
    visual_positions: torch.Tensor
    question_start: int
    question_ids: torch.Tensor
    answer_at: torch.Tensor
    answers: torch.Tensor
    kinds: torch.Tensor


class VideoBatches(torch.utils.data.Dataset):
    """The batches of one stage, by step."""

    def __init__(self, stage: VideoStage, number: int) -> None:
        self.stage, self.number = stage, number

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> VideoBatch:
        stage = self.stage
        first = self.number * STAGE_STRIDE + step * stage.batch
        rng = clip_rng("train", first, purpose=1)
        clips = [draw_clip("train", first + i) for i in range(stage.batch)]
        asked = [[_draw_from_mix(clip, stage.mix, rng) for _ in range(stage.questions)] for clip in clips]
        cells = np.stack([_places(clip, stage.places or PATCHES, rng) for clip in clips])
        batch = pack(clips, asked, cells)
        thin = rng.random() < stage.sparse
        return thin_out(batch, int(rng.integers(stage.fewest, stage.most + 1)), rng) if thin else batch


def _draw_from_mix(clip: Clip, mix: dict[str, float], rng: np.random.Generator) -> Question:
    kinds = list(mix)
    shares = np.array([mix[kind] for kind in kinds], float)
    for kind in rng.choice(kinds, 6, p=shares / shares.sum()):
        question = draw_question(str(kind), clip, rng)
        if question is not None:
            return question
    # every clip has one of these: a thing that neither changes nor hides its colour, or one that does
    return draw_question("shape", clip, rng) or draw_question("changes", clip, rng)


def _places(clip: Clip, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` patch positions in raster order [K]: those any object touches, then others at random."""
    touched = (clip.labels.roles != NO_ROLE).any(0)
    return np.sort(np.argsort(rng.random(PATCHES) - touched)[:count])


def clip_patches(frames: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Patches of frames (uint8 [F, 224, 224, 3]) at `cells` [K]: uint8 [F, K, 588], a patch's channels one by one."""
    rows = frames.reshape(len(frames), GRID, PATCH, GRID, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    return rows.reshape(len(frames), PATCHES, -1)[:, cells]


def pack(clips: list[Clip], asked: list[list[Question]], cells: np.ndarray) -> VideoBatch:
    """Tensors of clips with equally many questions each; cells: patch positions that the tower computes, [B, K]."""

    def stacked(rows) -> torch.Tensor:
        return torch.from_numpy(np.stack(list(rows)))

    pairs = list(zip(clips, cells, strict=True))
    ids = np.concatenate([np.zeros((len(cells), 1), np.int64), 1 + cells], 1)
    tokens = (np.arange(FRAMES)[:, None] * (PATCHES + 1) + ids[:, None]).reshape(len(cells), -1)
    return VideoBatch(
        patches=stacked(clip_patches(clip.frames, own) for clip, own in pairs),
        cells=torch.from_numpy(cells),
        colors=stacked(clip.labels.colors[:, own] for clip, own in pairs),
        shapes=stacked(clip.labels.shapes[:, own] for clip, own in pairs),
        roles=stacked(clip.labels.roles[:, own] for clip, own in pairs),
        objects=stacked(np.stack([object_set(clip, frame) for frame in range(FRAMES)]) for clip in clips),
        kept=None,
        visual_positions=len(PREFIX) + torch.from_numpy(tokens),
        question_start=len(PREFIX) + TOKENS,
        **_pack_questions(asked),
    )


def thin_out(batch: VideoBatch, count: int, rng: np.random.Generator) -> VideoBatch:
    """The batch whose decoder gets `count` tokens: nine in ten object patches, then anything at random."""
    objects = (batch.roles != NO_ROLE).numpy()
    objects = np.concatenate([np.zeros((*objects.shape[:2], 1), bool), objects], 2).reshape(len(objects), -1)
    first = objects & (rng.random(objects.shape) < 0.9)
    kept = torch.from_numpy(np.sort(np.argsort(rng.random(objects.shape) - first, 1)[:, :count], 1))
    return replace(batch, kept=kept, visual_positions=batch.visual_positions.gather(1, kept))


def _pack_questions(asked: list[list[Question]]) -> dict[str, torch.Tensor]:
    words = [[question_ids(question.text) for question in row] for row in asked]
    shape = (len(asked), len(asked[0]))
    length = 1 + max((len(ids) for row in words for ids in row), default=0)
    ids = torch.full((*shape, length), IDS[PAD])
    place, answers, kinds = (torch.full(shape, IGNORE) for _ in range(3))
    for i, row in enumerate(asked):
        for j, question in enumerate(row):
            text = words[i][j]
            ids[i, j, : len(text) + 1] = torch.tensor([*text, IDS[question.answer]])
            place[i, j] = len(text) - 1
            answers[i, j] = IDS[question.answer]
            kinds[i, j] = KINDS.index(question.kind)
    return {"question_ids": ids, "answer_at": place, "answers": answers, "kinds": kinds}
