"""Control: a random subset of the visual tokens, drawn before the LLM, without [CLS].

The draw depends on `seed` and the image's pixels only, so it is the same in every batch and for every question.
"""

import zlib
from dataclasses import dataclass
from functools import partial

import torch

from ...ops.selection import Selection
from ...plans.grids import cls_slots, kept_of
from ...plans.plan import Kept, Plan, Stage, View
from ...plans.shape import VisualShape
from ..method import InDecoder
from ..options import option
from ..registry import register


@register("random")
@dataclass(frozen=True, kw_only=True)
class Random(InDecoder):
    """`tokens` of the nominal number of visual tokens, or the same share of another number."""

    seed: int = option(0, "another one gives another subset of every image", low=0, high=2**31 - 1)

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """One stage on entry of the first layer.  None: budget out of reach."""
        self.one_way(tokens)
        without, keep = tuple(cls_slots(shape)), kept_of(tokens, shape)
        if not 1 <= keep <= shape.tokens - len(without):
            return None
        stage = Stage(0, Kept(keep), partial(select, seed=self.seed, without=without))
        return self.placed(Plan("random", shape, stages=(stage,), seeded=True))


def select(view: View, kept: Kept, seed: int, without: tuple[int, ...]) -> Selection:
    """`kept.dominant` slots [I, K], ascending, drawn image by image from those not in `without`; states unchanged."""
    allowed = torch.tensor([slot for slot in range(view.count) if slot not in set(without)])
    draws = [
        torch.randperm(len(allowed), generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {image}".encode())))
        for image in view.seeds
    ]
    index = allowed[torch.stack(draws)[:, : kept.dominant].sort(dim=1).values]
    return Selection(index=index.to(view.hidden.device))
