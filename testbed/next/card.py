"""Fills the numbers of the NeXT-style sibling's model card and draws its learning curves, from committed rows only.

python -m testbed.next.card            # the marked blocks of checkpoints/testbed-next/README.md, and curves.png
python -m testbed.next.card --check    # exits with 1 when the card does not say what the rows say
"""

from __future__ import annotations

import sys

from testbed.cards.sibling_card import SiblingCard
from testbed.next.sets import KINDS, chance_levels
from testbed.next.views import TOKENS

CARD = SiblingCard(
    "testbed-next", "testbed_next", KINDS, ("patch_color", "patch_shape", "patch_digit"), TOKENS, chance_levels
)

if __name__ == "__main__":
    sys.exit(CARD.main())
