"""The testbed that says where things are (LLaVA-1.5), from the base testbed.

bash scripts/train_testbed.sh --config configs/testbed/grounded.yaml --out runs/testbed-grounded

The base testbed's tower never had to tell where a patch lies (from its features no linear map finds the row of an object's
patch; CLIP's do tell), and training alone brings that back slowly. It therefore begins with a few channels set apart: the
position embedding writes each patch's place there and no layer writes or reads them, so they arrive at the features as they
were. A stage without questions heals what that cost and lets the layers use them; it reads every patch's row and column beside
colour, shape and digit. In the stages with questions every visual token keeps its position, as in LLaVA's own training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from testbed.data.scenes import FULL_GRID, Scene
from testbed.grounded.sets import FAMILY
from testbed.grounded.tokenizer import build_tokenizer
from testbed.training import base
from testbed.training.batches import Stage
from testbed.training.course import Course, begin_from
from testbed.training.export import export_checkpoint
from testbed.training.model import HEADS, TOWER, Sizes, Weights, init_heads, init_weights

PERIODS = (48, 12)  # in patches: half a wave over the picture tells sides apart, the shorter one neighbours
ENTRY, GAIN = 6.0, 2.0  # size of a place beside a patch's pixels, and behind the first norm beside the layers' states
PLACES = {"row": FULL_GRID + 1, "column": FULL_GRID + 1}  # the last class means "nothing", as in every label


def begin(weights: Weights, folder: Path) -> Weights:
    """The base testbed's weights, with the channels of the tower that the projector reads least set apart for places."""
    begun = begin_from(weights, folder)
    read = begun["model.mm_projector.0.weight"].pow(2).sum(0)
    apart = read.argsort(stable=True)[: 4 * len(PERIODS)]
    for name, value in begun.items():
        if not name.startswith(TOWER) and name != "model.mm_projector.0.weight":
            continue
        if name.endswith(
            ("out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias", "embedding.weight", "class_embedding")
        ):
            value.index_fill_(value.ndim - 1 if "position" in name or "class" in name else 0, apart, 0.0)
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "fc1.weight", "projector.0.weight")):
            value.index_fill_(1, apart, 0.0)
    begun[f"{TOWER}embeddings.position_embedding.weight"][1:, apart] = ENTRY * _places()
    begun[f"{TOWER}pre_layrnorm.weight"][apart] = GAIN
    begun[f"{TOWER}pre_layrnorm.bias"][apart] = 0.0
    return begun


def _places() -> torch.Tensor:
    """[576, 4 x periods] sine and cosine of each patch's row and column, raster order."""
    line = torch.arange(FULL_GRID) + 0.5
    waves = [wave(2 * math.pi * line / period) for period in PERIODS for wave in (torch.sin, torch.cos)]
    rows, columns = torch.meshgrid(torch.arange(FULL_GRID), torch.arange(FULL_GRID), indexing="ij")
    return torch.stack([wave[line.flatten()] for line in (rows, columns) for wave in waves], dim=1)


def new_weights(sizes: Sizes, seed: int) -> Weights:
    """The model and the readouts of the auxiliary losses, the places of patches among them."""
    return init_weights(sizes, seed) | init_heads(sizes, seed, HEADS | PLACES)


def _with_places(fields: dict) -> dict:
    labels, cells = fields["labels"], fields["cells"].expand(len(fields["shown"]), -1)
    return fields | {"labels": labels | {"row": cells // FULL_GRID, "column": cells % FULL_GRID}}


def whole(scenes: Sequence[Scene]) -> dict:
    """Full pictures."""
    return _with_places(base.whole(scenes))


def pack(scenes: Sequence[Scene], stage: Stage, rng: np.random.Generator) -> dict:
    """Full pictures, or windows at a random place of them."""
    return _with_places(base.draw_window(scenes, stage, rng))


def export(weights: Weights, sizes: Sizes, folder: Path) -> None:
    """The base testbed's layout, with the tokenizer that knows the edges of patches."""
    export_checkpoint(weights, sizes, folder)
    build_tokenizer().save_pretrained(folder)


COURSE = Course(
    scenes=FAMILY.scenes,
    questions=FAMILY.questions,
    views=replace(base.COURSE.views, pack=pack, whole=whole, renumbered=False),
    new_weights=new_weights,
    begin=begin,
    export=export,
    stream=1,
    validation_scenes=96,
    together=8,
    per_kind=8,
)
