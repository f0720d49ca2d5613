"""Fills the numbers of the NeXT-style sibling's model card and draws its learning curves, from committed rows only.

python -m eval.testbed.next.card            # the marked blocks of checkpoints/testbed-next/README.md, and curves.png
python -m eval.testbed.next.card --check    # exits with 1 when the card does not say what the rows say
"""

from __future__ import annotations

import sys

from eval.testbed.next.sets import KINDS, chance_levels
from eval.testbed.next.views import TOKENS
from eval.testbed.sibling_card import SiblingCard

CARD = SiblingCard(
    "testbed-next", "testbed_next", KINDS, ("patch_color", "patch_shape", "patch_digit"), TOKENS, chance_levels
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(CARD.main())
