"""Reading option values, as given in Python or as text on a command line."""

from collections.abc import Sequence
from typing import Any

from .errors import VisionDropError


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


def integers(name: str, value: Any) -> tuple[int, ...]:
    """A tuple of whole numbers from a sequence or from text such as "8,16,24"."""
    try:
        items = value.strip("[]() ").split(",") if isinstance(value, str) else value
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
