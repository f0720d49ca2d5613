"""Fills the numbers of the video sibling's model card and draws its learning curves, from committed rows only.

    python -m eval.testbed.video.card            # the marked blocks of checkpoints/testbed-video/README.md, curves.png
    python -m eval.testbed.video.card --check    # exits with 1 when the card does not say what the rows say
"""

from __future__ import annotations

import sys

from eval.testbed.sibling_card import SiblingCard
from eval.testbed.video.batches import TOKENS
from eval.testbed.video.questions import KINDS
from eval.testbed.video.sets import chance_levels

VIDEO = SiblingCard(
    name="testbed-video",
    benchmark="testbed_video",
    kinds=KINDS,
    labels=("patch_color", "patch_shape", "patch_role"),
    tokens=TOKENS,
    chance=chance_levels,
)

if __name__ == "__main__":
    sys.exit(VIDEO.main())
