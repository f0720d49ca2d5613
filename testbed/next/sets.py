"""The NeXT-style sibling's question sets, written as those of the base testbed (see testbed.data.sets).

    python -m testbed.next.sets --out data        # data/visiondrop-testbed-next/{validation,test,quick}/
    python -m testbed.next.sets --chance          # chance levels of every kind, and the sets' digests

`object_patches` and `needed_patches` count the 2,880 tokens of layout fixed-2880: base view, then the crops' canvas.
"""

from __future__ import annotations

import sys
from operator import attrgetter

from PIL import Image

from testbed.data.material import QUESTIONS, Questions, Scenes
from testbed.data.sets import Family, SetSpec, picture_row
from testbed.next.scenes import VERSION, draw_scene, scene_rng

KINDS = ("exist", "color", "shape", "count", "digit", "hop2")
SETS = {
    "validation": SetSpec("validation", 0, 600),
    "test": SetSpec("test", 0, 600),
    "quick": SetSpec("test", 100_000, 96),
}
FAMILY = Family(
    dataset="visiondrop-testbed-next",
    note="Question sets of VisionDrop's NeXT-style testbed",
    sets=SETS,
    scenes=Scenes(VERSION, draw_scene, scene_rng, attrgetter("image")),
    questions=Questions(KINDS, QUESTIONS.training_kinds, QUESTIONS.draw, QUESTIONS.fallback, QUESTIONS.ids),
    per_image=len(KINDS),
    row=picture_row,
)
DATASET = FAMILY.dataset
draw_set, write_sets = FAMILY.draw_set, FAMILY.write_sets
digest, chance_levels = FAMILY.digest, FAMILY.chance_levels


def doc_to_visual(doc: dict) -> list:
    """The picture of one row for lmms-eval, drawn here, as a list of one PIL image."""
    return [Image.fromarray(draw_scene(doc["split"], doc["scene"]).image)]


if __name__ == "__main__":
    sys.exit(FAMILY.main())
