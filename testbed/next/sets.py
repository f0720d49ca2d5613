"""The NeXT-style sibling's question sets, written as those of the base testbed (see testbed.data.sets).

    python -m testbed.next.sets --out data        # data/visiondrop-testbed-next/{validation,test,quick}/
    python -m testbed.next.sets --chance          # chance levels of every kind, and the sets' digests

`object_patches` and `needed_patches` count the 2,880 tokens of layout fixed-2880: base view, then the crops' canvas.
"""

from __future__ import annotations

import sys
from functools import partial

from PIL import Image

from testbed.data import sets
from testbed.data.sets import Family, SetSpec
from testbed.next.scenes import VERSION, draw_scene, scene_rng

KINDS = ("exist", "color", "shape", "count", "digit", "hop2")
SETS = {
    "validation": SetSpec("validation", 0, 600),
    "test": SetSpec("test", 0, 600),
    "quick": SetSpec("test", 100_000, 96),
}
FAMILY = Family(
    "visiondrop-testbed-next", VERSION, "Question sets of VisionDrop's NeXT-style testbed", SETS, KINDS,
    draw_scene, scene_rng, per_image=len(KINDS),
)  # fmt: skip

draw_set = partial(sets.draw_set, family=FAMILY)
write_sets = partial(sets.write_sets, family=FAMILY)
digest = partial(sets.digest, family=FAMILY)
chance_levels = partial(sets.chance_levels, family=FAMILY)
main = partial(sets.main, family=FAMILY)


def doc_to_visual(doc: dict) -> list:
    """The picture of one row for lmms-eval, drawn here, as a list of one PIL image."""
    return [Image.fromarray(draw_scene(doc["split"], doc["scene"]).image)]


if __name__ == "__main__":
    sys.exit(main())
