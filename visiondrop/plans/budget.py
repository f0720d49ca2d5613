"""The budget: whether it is one, and what it means for an image of another size than it is stated for."""

from typing import Any

from ..errors import VisionDropError
from .plan import Plan
from .shape import VisualShape


def scaling_notes(plan: Plan, shape: VisualShape) -> tuple[str, ...]:
    """What the budget means for an image of another size than it is stated for."""
    if not plan.active:
        return ()
    if plan.encoder is not None:
        units = "crops" if shape.canvas or shape.source.startswith("anyres") else "frames"
        if shape.units == shape.nominal_units:
            return ()
        return (
            f"the budget is stated for {shape.nominal_units} {units}; this image has {shape.units} {units} and gets "
            f"{shape.units}/{shape.nominal_units} of it",
        )
    if shape.tokens == shape.nominal:
        return ()
    return (
        f"the budget is stated for {shape.nominal} visual tokens; this image has {shape.tokens} of {shape.nominal} and "
        "keeps the same fractions",
    )


def check_budget(tokens: Any, shape: VisualShape) -> int:
    """`tokens` if it is a whole number of tokens that the image has."""
    if isinstance(tokens, bool) or int(tokens) != tokens:
        raise VisionDropError(f"tokens={tokens!r}: the budget is a whole number of tokens, e.g. tokens=64")
    most = max(shape.nominal, shape.tokens)
    if not 1 <= tokens <= most:
        raise VisionDropError(
            f"tokens={tokens}: the budget is the mean number of visual tokens per LLM layer and must lie in 1 … "
            f"{most}, the image's own count"
        )
    return int(tokens)
