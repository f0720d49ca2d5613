"""Control: a random subset of the visual tokens, drawn before the LLM, without [CLS].

The draw depends on `seed` and the image's pixels only, so it is the same in every batch and for every question.
"""

import zlib

import torch

from ...ops.selection import Selection
from ...plans.grids import cls_slots, kept_of
from ...plans.plan import Plan, Stage
from ...plans.shape import VisualShape
from ..options import amounts, integer
from ..registry import register


@register("random")
def plan(tokens: int | None, shape: VisualShape, *, seed: int | str = 0) -> Plan | None:
    """`tokens` of the nominal number of visual tokens, or the same share of another number.

    Args:
        seed: another one gives another subset of every image.

    Returns:
        The plan, or None where the budget cannot be met.
    """
    amounts(tokens)
    number = integer("seed", seed, 0, 2**31 - 1)
    without = cls_slots(shape)
    keep = kept_of(tokens, shape)
    if not 1 <= keep <= shape.tokens - len(without):
        return None
    stage = Stage(0, keep, selector(number, without), dominant=keep)
    return Plan("random", shape, stages=(stage,), seeded=True)


def selector(seed: int, without: list[int]):
    """`view.keep` slots [I, keep], ascending, drawn image by image from those not in `without`; states unchanged."""

    def select(view) -> Selection:
        allowed = torch.tensor([slot for slot in range(view.count) if slot not in set(without)])
        draws = [
            torch.randperm(
                len(allowed), generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {image}".encode()))
            )
            for image in view.seeds
        ]
        index = allowed[torch.stack(draws)[:, : view.keep].sort(dim=1).values]
        return Selection(index=index.to(view.hidden.device))

    return select
