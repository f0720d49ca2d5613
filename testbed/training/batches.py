"""Training batches: what a stage of the curriculum says, what a batch holds, and how views of scenes become one.

A sibling (testbed.next, testbed.video) brings its own `Views`; questions and thinning-out are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from testbed.data.material import Questions
from testbed.data.questions import Question
from testbed.data.scenes import COLOR_NAMES, NO_COLOR, NO_DIGIT, NO_SHAPE, SHAPES, Thing
from testbed.data.tokenizer import EOS, IDS, PAD, PREFIX, question_ids

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IGNORE = -100
END_ID = IDS[EOS]


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum.

    grid: patches per side; questions: per image, 0 trains the tower alone; mix: share of each kind; long_mix takes its
    place on every `long_every`-th step (three-hop questions are long, and the longest question sets the packed length);
    rate, end_rate: learning rate at the start (after `warmup` steps) and at the end, a straight line between;
    labels: weight of the patch-label and object-set losses; bridge: weight of the losses on the hops' results;
    depth: decoder layers that are run, 0 for all of them; sparse: share of the steps in which the decoder gets only
    some of the visual tokens (see `thin_out`), as a pruned model does, between `fewest` and `most` of them (0: half of
    all); places: patch positions that the tower of a video computes, 0 for all; frozen: the tower is not trained.
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
    fewest: int = 48
    most: int = 0
    places: int = 0
    frozen: bool = False

    def mix_at(self, step: int) -> dict[str, float]:
        """Shares of the kinds of question at a step."""
        return self.long_mix if self.long_every and step % self.long_every == 0 else self.mix


@dataclass(frozen=True)
class Batch:
    """One packed batch; int64 unless said otherwise. B scenes, V visual tokens, Q questions, T tokens.

    pixels: uint8, what the tower sees, in the shape its `Views.encode` takes; cells: places of its patches;
    labels: by name, the class of every patch [..., K]; shown: bool [..., K], whether a patch shows any object;
    objects: float [..., N], which colour-shape pairs (and digits) are in a view; question_ids [B, Q, T];
    answer_at [B, Q]: the place whose next token is the answer's first; answers [B, Q, A]: its words, IGNORE after the
    last; bridges [B, Q, 2]: the words that the first and the second hop lead to (IGNORE where there is none); kinds [B, Q]: number among the kinds trained;
    visual_positions ([V] or [B, V]) and question_start: see model.Layout; kept [B, K]: numbers of the visual tokens the
    decoder gets, ascending, None for all of them.
    """

    pixels: torch.Tensor
    cells: torch.Tensor
    labels: dict[str, torch.Tensor]
    shown: torch.Tensor
    objects: torch.Tensor
    visual_positions: torch.Tensor
    question_start: int
    question_ids: torch.Tensor
    answer_at: torch.Tensor
    answers: torch.Tensor
    bridges: torch.Tensor
    kinds: torch.Tensor
    kept: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **moved, labels={name: value.to(device) for name, value in self.labels.items()})


class Seen(NamedTuple):
    """What the tower makes of a batch.

    states: patch features [..., K, D], or [..., 1 + K, D] where every frame's [CLS] stands first and is a token too;
    attention: of [CLS] on the patches, mean over heads [..., K], None where the labels of such a batch are not trained;
    cls: states of a [CLS] that is no token [..., D].
    """

    states: torch.Tensor
    attention: torch.Tensor | None = None
    cls: torch.Tensor | None = None

    @property
    def tokens(self) -> torch.Tensor:
        """What the decoder may get, [B, V, D]."""
        return self.states.flatten(1, -2)

    @property
    def patches(self) -> torch.Tensor:
        """What patch labels are read from, [..., K, D]."""
        return self.states[..., 1:, :] if self.cls is None else self.states

    @property
    def summary(self) -> torch.Tensor:
        """What the object set of a picture or frame is read from, [..., D]."""
        return self.states[..., 0, :] if self.cls is None else self.cls


@dataclass(frozen=True)
class Views:
    """How a testbed's scenes are shown to its model.

    pack: (scenes, stage, generator) to the visual fields of a `Batch` by name, drawing what the stage leaves open;
    whole: (scenes) to the same with all that can be seen; encode: (weights, sizes, batch) to a `Seen`;
    count: (fewest, most, generator) to the number of visual tokens of a sparse step; renumbered: half of the sparse steps
    number the tokens anew; cls: the decoder gets a [CLS] before the patches of every frame; places: stages may say how
    many patch positions are computed.
    """

    pack: Callable[[Sequence[Any], Stage, np.random.Generator], dict[str, Any]]
    whole: Callable[[Sequence[Any]], dict[str, Any]]
    encode: Callable[..., Seen]
    count: Callable[[int, int, np.random.Generator], int]
    renumbered: bool = True
    cls: bool = False
    places: bool = False


def even_on_a_logarithm(fewest: int, most: int, rng: np.random.Generator) -> int:
    """A number between these, small ones as often as large ones on a logarithmic scale."""
    return round(fewest * (most / fewest) ** rng.random())


def thin_out(batch: Batch, views: Views, stage: Stage, rng: np.random.Generator) -> Batch:
    """A batch whose decoder gets some of the visual tokens, at their own positions or numbered anew.

    Nine in ten object patches go first, then anything at random: no score of any pruning method is involved.
    """
    objects = (F.pad(batch.shown, (1, 0)) if views.cls else batch.shown).flatten(1).numpy()
    count = views.count(stage.fewest, stage.most or objects.shape[1] // 2, rng)
    first = objects & (rng.random(objects.shape) < 0.9)
    kept = torch.from_numpy(np.sort(np.argsort(rng.random(objects.shape) - first, 1)[:, :count], 1))
    if views.renumbered and rng.random() >= 0.5:
        start = len(PREFIX) + count
        return replace(batch, kept=kept, visual_positions=torch.arange(len(PREFIX), start), question_start=start)
    positions = batch.visual_positions.expand(len(kept), -1).gather(1, kept)
    return replace(batch, kept=kept, visual_positions=positions)


def pack_questions(asked: list[list[Question]], questions: Questions) -> dict[str, torch.Tensor]:
    """The question fields of a `Batch`, of scenes with equally many questions each."""
    ids_of = questions.ids
    words = [[question_ids(question.text, ids_of) for question in row] for row in asked]
    said = [[[ids_of[word] for word in question.answer.split()] for question in row] for row in asked]
    shape = (len(asked), len(asked[0]))
    pairs = [(ids, told) for i, row in enumerate(words) for ids, told in zip(row, said[i], strict=True)]
    length = max((len(ids) + len(told) for ids, told in pairs), default=1)
    ids = torch.full((*shape, length), ids_of[PAD])
    place, kinds = (torch.full(shape, IGNORE) for _ in range(2))
    answers = torch.full((*shape, max((len(told) for _, told in pairs), default=1)), IGNORE)
    bridges = torch.full((*shape, 2), IGNORE)
    for i, row in enumerate(asked):
        for j, question in enumerate(row):
            text, told = words[i][j], said[i][j]
            ids[i, j, : len(text) + len(told)] = torch.tensor([*text, *told])
            place[i, j] = len(text) - 1
            answers[i, j, : len(told)] = torch.tensor(told)
            for hop, word in enumerate(question.bridges):
                bridges[i, j, hop] = ids_of[word]
            kinds[i, j] = questions.training_kinds.index(question.kind)
    return {"question_ids": ids, "answer_at": place, "answers": answers, "bridges": bridges, "kinds": kinds}


def stacked(rows) -> torch.Tensor:
    """Arrays of one shape as one tensor."""
    return torch.from_numpy(np.stack(list(rows)))


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
