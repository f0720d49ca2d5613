"""Stages that act on entry of the language model, where the rows of an image are all there is."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops.selection import gather_rows
from ..plans.plan import Plan
from ..plans.shape import VisualShape


@dataclass
class EntryRows:
    """What a selector may ask about I images of n rows each before the first decoder layer (see `stack.view.View`).

    Attributes:
        hidden: [I, n, D] embeddings in sequence order.
        keep: rows the stage must return; seeds: one whole number per image, a fingerprint of its pixels.
    """

    hidden: Tensor
    keep: int
    shape: VisualShape
    seeds: Sequence[int] = ()
    memory: dict = field(default_factory=dict)

    @property
    def count(self) -> int:
        """n, rows per image before the stage."""
        return self.hidden.shape[1]


def enter(plan: Plan, rows: Sequence[Tensor], seeds: Sequence[int]) -> list[Tensor]:
    """The rows of images of one shape as the first decoder layer gets them: [n, D] each -> [m, D] each."""
    for stage in plan.live_stages:
        view = EntryRows(torch.stack(list(rows)), stage.keep, plan.shape, seeds)
        assert stage.select is not None  # a live stage
        selection = stage.select(view, stage.kept)
        value = gather_rows(view.hidden, selection.index) if selection.value is None else selection.value
        rows = list(value)
    return list(rows)
