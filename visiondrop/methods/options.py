"""Reading option values, as given in Python or as text on a command line."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import VisionDropError


def on_off(name: str, value: Any) -> bool:
    """True/False from a bool or "on"/"off"."""
    table = {"on": True, "off": False, "true": True, "false": False, True: True, False: False}
    key = value.lower() if isinstance(value, str) else value
    if key not in table:
        raise VisionDropError(f"{name}={value!r}: allowed are 'on' and 'off'")
    return table[key]


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """`value` if it is one of `allowed`."""
    if value not in allowed:
        raise VisionDropError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")
    return value


def score_rule(score: Any, score_mask: Any, allowed_masks: Sequence[str]) -> None:
    """Check a decoder stage's `score` ("visual" or "text") and `score_mask`, which only visual scores have."""
    choice("score", score, ("visual", "text")), choice("score_mask", score_mask, allowed_masks)
    if score == "text" and score_mask != "causal":
        raise VisionDropError(f"score_mask={score_mask!r}: a mask needs score='visual', not 'text'")


def integers(name: str, value: Any) -> tuple[int, ...]:
    """A tuple of whole numbers from one number, a sequence, or text such as "8,16,24"."""
    try:
        items = value.strip("[]() ").split(",") if isinstance(value, str) else value
        items = [items] if isinstance(items, int) else items
        return tuple(int(item) for item in items)
    except (TypeError, ValueError):
        raise VisionDropError(f"{name}={value!r}: give whole numbers, e.g. {name}=8,16,24") from None


def integer(name: str, value: Any, low: int, high: int) -> int:
    """A whole number in low … high."""
    try:
        number = int(value)
        if number != float(value) or not low <= number <= high:
            raise ValueError
    except (TypeError, ValueError):
        raise VisionDropError(f"{name}={value!r}: allowed are whole numbers in {low} … {high}") from None
    return number


def fraction(name: str, value: Any) -> float:
    """A number in (0, 1]."""
    try:
        number = float(value)
        if not 0 < number <= 1:
            raise ValueError
    except (TypeError, ValueError):
        raise VisionDropError(f"{name}={value!r}: allowed are numbers above 0 and up to 1") from None
    return number


def share(name: str, value: Any) -> float:
    """A number in [0, 1]."""
    try:
        number = float(value)
        if not 0 <= number <= 1:
            raise ValueError
    except (TypeError, ValueError):
        raise VisionDropError(f"{name}={value!r}: allowed are numbers from 0 to 1") from None
    return number


def positive(name: str, value: Any) -> float:
    """A finite number above 0."""
    try:
        number = float(value)
        if not 0 < number < float("inf"):
            raise ValueError
    except (TypeError, ValueError):
        raise VisionDropError(f"{name}={value!r}: allowed are numbers above 0") from None
    return number


def shares(name: str, value: Any) -> tuple[float, ...]:
    """Numbers in [0, 1]: one, a sequence, or text such as "0.5,0.25,0.125"."""
    if isinstance(value, str):
        value = value.strip("[]() ").split(",")
    return tuple(share(name, item) for item in (value if isinstance(value, Sequence) else [value]))


def amounts(tokens: int | None, **explicit: Any) -> None:
    """Check that a method is given exactly one of: a budget, a preset, explicit amounts.

    Args:
        explicit: the method's options that fix amounts, `preset` among them where it has presets; None = not given.
    """
    given = {name: value for name, value in explicit.items() if value is not None}
    ways = (tokens is not None) + ("preset" in given) + bool(given.keys() - {"preset"})
    if ways == 0:
        others = "".join(f", or {name}=…" for name in explicit)
        raise VisionDropError(f"nothing says how much to keep: give tokens=64 (--tokens 64){others}")
    if ways > 1:
        budget = {} if tokens is None else {"tokens": tokens}
        both = " and ".join(f"{name}={value!r}" for name, value in {**budget, **given}.items())
        raise VisionDropError(f"{both} given together: give the budget, or a preset, or explicit amounts")


def preset_of(name: Any, presets: Mapping[str, Any]) -> Any:
    """The settings called `name`."""
    if name not in presets:
        raise VisionDropError(f"preset={name!r}: allowed are {', '.join(map(repr, presets))}")
    return presets[name]
