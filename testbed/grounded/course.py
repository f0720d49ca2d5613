"""The testbed that says where things are (LLaVA-1.5), from the base testbed.

bash scripts/train_testbed.sh --config configs/testbed/grounded.yaml --out runs/testbed-grounded

The base testbed's tower never had to tell where a patch lies (from its features no linear map finds the row of an object's
patch; CLIP's do tell). A stage without questions therefore trains it to tell every patch's row and column beside colour,
shape and digit. In the stages with questions every visual token keeps its position, as in LLaVA's own training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from testbed.data.scenes import FULL_GRID, Scene
from testbed.grounded.sets import FAMILY
from testbed.grounded.tokenizer import build_tokenizer
from testbed.training import base
from testbed.training.batches import Stage
from testbed.training.course import Course
from testbed.training.export import export_checkpoint
from testbed.training.model import HEADS, Sizes, Weights, init_heads, init_weights

PLACES = {"row": FULL_GRID + 1, "column": FULL_GRID + 1}  # the last class means "nothing", as in every label


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
    export=export,
    stream=1,
    validation_scenes=96,
    together=8,
    per_kind=8,
)
