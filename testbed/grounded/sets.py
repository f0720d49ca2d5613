"""The grounded sibling's question sets, written as those of the base testbed (see testbed.data.sets).

    python -m testbed.grounded.sets --out data        # data/visiondrop-testbed-grounded/{validation,test,quick}/
    python -m testbed.grounded.sets --chance          # chance levels, and the sets' digests

The pictures are those of the base testbed's sets. A row's `box` holds the object's true edges in patches, not rounded.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from testbed.data.material import SCENES, Questions
from testbed.data.questions import Question
from testbed.data.scenes import Scene
from testbed.data.sets import Family, SetSpec, picture_row
from testbed.grounded.boxes import chance
from testbed.grounded.questions import KINDS, TRAINING_KINDS, box_in_patches, draw_question
from testbed.grounded.tokenizer import IDS

SETS = {
    "validation": SetSpec("validation", 0, 600),
    "test": SetSpec("test", 0, 600),
    "quick": SetSpec("test", 100_000, 96),
}


def box_row(name: str, split: str, index: int, scene: Scene, question: Question) -> dict:
    """Columns of a question about a picture, beside its number."""
    return picture_row(name, split, index, scene, question) | {"box": box_in_patches(scene, question.things[0][0])}


@dataclass(frozen=True)
class Grounded(Family):
    """Chance is what a fixed box gets."""

    def chance_levels(self, name: str) -> dict[str, float]:
        """`iou` and `acc_50` of `testbed.grounded.boxes.chance`."""
        asked = ((scene, question) for _, scene, questions in self.draw_set(name) for question in questions)
        return chance(box_in_patches(scene, question.things[0][0]) for scene, question in asked)


FAMILY = Grounded(
    dataset="visiondrop-testbed-grounded",
    note="Question sets of VisionDrop's grounded testbed",
    sets=SETS,
    scenes=SCENES,
    questions=Questions(KINDS, TRAINING_KINDS, draw_question, fallback=("box",), ids=IDS),
    per_image=1,
    row=box_row,
)
DATASET = FAMILY.dataset
draw_set, write_sets = FAMILY.draw_set, FAMILY.write_sets
digest, chance_levels = FAMILY.digest, FAMILY.chance_levels

if __name__ == "__main__":
    sys.exit(FAMILY.main())
