"""Methods by name.  A method is one file with a plan (`tokens, shape, **options -> Plan`) and its selectors.

from visiondrop import register

@register("mine")
def plan(tokens, shape, *, strength=0.5): ...
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import VisionDropError, closest
from ..plans.plan import Plan
from ..plans.schedule import ranges
from ..plans.shape import VisualShape

_METHODS: dict[str, Callable[..., Plan]] = {}


def register(name: str) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """Decorator: make `plan(tokens, shape, **options)` available as method `name`; a later one replaces an earlier."""

    def add(function: Callable[..., Plan]) -> Callable[..., Plan]:
        _METHODS[name] = function
        return function

    return add


def _load_builtin() -> None:
    for module in pkgutil.walk_packages([str(Path(__file__).parent)], f"{__package__}."):
        importlib.import_module(module.name)


def available() -> list[str]:
    """Names of all registered methods, sorted."""
    _load_builtin()
    return sorted(_METHODS)


def options_of(name: str) -> dict[str, Any]:
    """Option names of a method and their defaults."""
    names = available()
    if name not in names:
        raise VisionDropError(f"unknown method {name!r}: {closest(name, names)}")
    parameters = list(inspect.signature(_METHODS[name]).parameters.values())[2:]
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def check_options(method: str, options: dict[str, Any]) -> None:
    """Refuse an unknown method or option, naming the closest ones."""
    allowed = options_of(method)
    for name in options:
        if name not in allowed:
            raise VisionDropError(f"method {method!r} has no option {name!r}: {closest(name, allowed)}")


def make_plan(method: str, tokens: int | None, shape: VisualShape, options: dict[str, Any]) -> Plan:
    """Build the plan of `method`, turning an unreachable budget into an error that says what is reachable.

    Args:
        tokens: the budget, mean visual tokens per decoder layer; None where the options give explicit amounts.
        shape: model depth and image size.
        options: the method's own options; unknown names are refused.
    """
    check_options(method, options)
    if tokens is not None:
        tokens = _check_budget(tokens, shape)
    plan = _METHODS[method](tokens, shape, **options)
    if plan is None:
        # One probe costs tens of microseconds, so the reachable set is simply tried out.
        limit = shape.nominal if shape.units != shape.nominal_units else max(shape.tokens, shape.nominal)
        good = [t for t in range(1, limit + 1) if _METHODS[method](t, shape, **options) is not None]
        what = (
            f"reachable with these settings: {ranges(good)}" if good else "no budget is reachable with these settings"
        )
        raise VisionDropError(
            f"a budget of {tokens} tokens is not reachable for method {method!r} on {shape.tokens} visual tokens and "
            f"{shape.layers} layers; {what}"
        )
    notes = plan.notes + (() if tokens is None else _scaling_notes(plan, shape))
    return replace(plan, method=method, tokens=tokens, options=dict(options), notes=notes)


def _scaling_notes(plan: Plan, shape: VisualShape) -> tuple[str, ...]:
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


def _check_budget(tokens: Any, shape: VisualShape) -> int:
    if isinstance(tokens, bool) or int(tokens) != tokens:
        raise VisionDropError(f"tokens={tokens!r}: the budget is a whole number of tokens, e.g. tokens=64")
    most = max(shape.nominal, shape.tokens)
    if not 1 <= tokens <= most:
        raise VisionDropError(
            f"tokens={tokens}: the budget is the mean number of visual tokens per LLM layer and must lie in 1 … "
            f"{most}, the image's own count"
        )
    return int(tokens)
