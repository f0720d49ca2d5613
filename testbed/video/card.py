"""Fills the numbers of the video sibling's model card and draws its learning curves, from committed rows only.

python -m testbed.video.card            # the marked blocks of checkpoints/testbed-video/README.md, curves.png
python -m testbed.video.card --check    # exits with 1 when the card does not say what the rows say
"""

from __future__ import annotations

import sys

from testbed.cards.sibling_card import SiblingCard
from testbed.video.questions import KINDS
from testbed.video.scenes import TOKENS
from testbed.video.sets import chance_levels

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
