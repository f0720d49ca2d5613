"""The budget: whether it is one, and what it means for an image of another size than it is stated for.

A budget is a whole number of tokens, or a share of the image's own: 0.22 and "22%" are the same.
"""

import math
from collections.abc import Callable
from typing import Any, TypeGuard

from ..errors import VisionDropError
from .plan import Plan
from .schedule import ranges
from .shape import VisualShape


def scaling_notes(plan: Plan, shape: VisualShape) -> tuple[str, ...]:
    """What the budget means for an image of another size than it is stated for."""
    if not plan.active:
        return ()
    if plan.encoder is not None and plan.scaled:
        units = "crops" if shape.canvas or shape.source.startswith("anyres") else "frames"
        if shape.units == shape.nominal_units:
            return ()
        return (
            f"the budget is stated for {shape.nominal_units} {units}; this image has {shape.units} {units} and gets "
            f"{shape.units}/{shape.nominal_units} of it",
        )
    if shape.tokens == shape.nominal or not plan.scaled:
        return ()
    return (
        f"the budget is stated for {shape.nominal} visual tokens; this image has {shape.tokens} of {shape.nominal} and "
        "keeps the same fractions",
    )


Budget = int | float | str | None  # tokens, a share of the image's ("22%", 0.22), or None: explicit amounts


def share_of(tokens: Any) -> float | None:
    """The share in (0, 1] that "22%" or 0.22 asks for; None where `tokens` is no share but a count, or no budget."""
    try:
        if isinstance(tokens, str) and tokens.strip().endswith("%"):
            share = float(tokens.strip()[:-1]) / 100
        elif isinstance(tokens, float) and tokens < 1:
            return tokens if tokens > 0 else None
        else:
            return None
        if not 0 < share <= 1:
            raise ValueError
    except ValueError:
        raise VisionDropError(f"tokens={tokens!r}: allowed are shares above 0% and up to 100%") from None
    return share


def is_name(tokens: Any) -> TypeGuard[str]:
    """Whether a budget is the name of a preset (`plans.presets`): text that begins with a letter."""
    return isinstance(tokens, str) and tokens.strip()[:1].isalpha()


def least_tokens(share: float, shape: VisualShape, floor: int = 0) -> int:
    """The smallest whole budget that is at least `share` of the tokens budgets are stated for, and `floor` of them."""
    return max(1, math.ceil(share * shape.nominal - 1e-9), min(floor, shape.nominal))


def check_budget(tokens: Any, shape: VisualShape) -> int:
    """`tokens` if it is a whole number of tokens that the image has."""
    try:
        if isinstance(tokens, (bool, str)) or int(tokens) != tokens:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise VisionDropError(
            f"tokens={tokens!r}: the budget is a whole number of tokens, e.g. tokens=64, or a share of the image's, "
            "e.g. tokens='22%' or tokens=0.22"
        ) from None
    most = max(shape.nominal, shape.tokens)
    if not 1 <= tokens <= most:
        raise VisionDropError(
            f"tokens={tokens}: the budget is the mean number of visual tokens per LLM layer and must lie in 1 … "
            f"{most}, the image's own count"
        )
    return int(tokens)


def count_of(tokens: Any, share: float | None, shape: VisualShape, min_tokens: int = 0) -> int | None:
    """The whole number of tokens that a budget asks for on an image of `shape`; None where there is no budget.

    Args:
        share: `share_of(tokens)`; min_tokens: the least that a share may come to, where the image has as many.
    """
    if share is not None:
        return least_tokens(share, shape, min_tokens)
    if min_tokens:
        raise VisionDropError(
            f"min_tokens={min_tokens} with tokens={tokens!r}: a least number of tokens per image guards a share of the "
            "image's own, e.g. tokens='22%'"
        )
    return None if tokens is None else check_budget(tokens, shape)


def reachable(solve: Callable[[int, VisualShape], Plan | None], shape: VisualShape) -> list[int]:
    """The budgets for which `solve` has a plan, ascending.  One probe costs tens of microseconds: all are tried."""
    limit = shape.nominal if shape.units != shape.nominal_units else max(shape.tokens, shape.nominal)
    return [t for t in range(1, limit + 1) if solve(t, shape) is not None]


def out_of_reach(method: str, tokens: int | None, shape: VisualShape, good: list[int]) -> VisionDropError:
    """The error for a budget that `method` cannot meet; it names the budgets that it can, `good`."""
    what = f"reachable with these settings: {ranges(good)}" if good else "no budget is reachable with these settings"
    if tokens is not None and good and good[0] < tokens < good[-1]:
        below, above = max(t for t in good if t < tokens), min(t for t in good if t > tokens)
        what += f"; the nearest are {below} and {above}"
    return VisionDropError(
        f"a budget of {tokens} tokens is not reachable for method {method!r} on {shape.tokens} visual tokens and "
        f"{shape.layers} layers; {what}"
    )
