"""What is compared: methods with budgets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import VisionDropError
from ..methods.registry import available, make_plan
from ..plans.budget import Budget
from ..plans.shape import VisualShape

METHODS = ("visiondrop", "vispruner", "visionzip", "divprune")
SHARES = ("33%", "22%", "11%", "5.6%")


@dataclass(frozen=True)
class Setting:
    """A method with its budget; budget None: the unpruned model."""

    method: str
    tokens: Budget = None

    @property
    def name(self) -> str:
        """As tables and rows call it."""
        return self.method if self.tokens is None else f"{self.method}:{self.tokens}"


NONE = Setting("none")


def settings_of(
    methods: Sequence[str] | str | None, tokens: Sequence[Any] | None, shape: VisualShape
) -> tuple[list[Setting], list[str]]:
    """(settings that can be met, a sentence for each that cannot).

    Args:
        methods: names, "all" for the whole registry, or None for `METHODS`; tokens: budgets, or None for `SHARES`.

    Raises:
        VisionDropError: an unknown method, or nothing can be met.
    """
    names = [n for n in available() if n != "none"] if methods == "all" else list(methods or METHODS)
    good, problems = [], []
    for name in names:
        for budget in tokens or SHARES:
            try:
                make_plan(name, budget, shape, {})
                good.append(Setting(name, budget))
            except VisionDropError as error:
                if "unknown method" in str(error):
                    raise
                problems.append(f"{name}:{budget} is left out: {error}")
    good = list(dict.fromkeys(good))
    if not good:
        raise VisionDropError(f"none of the settings can be met; the first: {problems[0]}")
    return good, problems
