"""Options of a method: dataclass fields that carry help and allowed values, and the readers of what is given for them.
A value may be given in Python or as text on a command line; both become the same value of the field's type.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import VisionDropError


def option(
    default: Any,
    help: str,
    *,
    allowed: Sequence[str] | Mapping[str, Any] | None = None,
    low: int | None = None,
    high: int | None = None,
    zero: bool = True,
    amount: bool = False,
    read: Callable[[str, Any], Any] | None = None,
    compare: bool = True,
) -> Any:
    """A field of a method: its default, and for readers and pages what it is and what it may be.

    Args:
        default: None = not given.
        help: one sentence.
        allowed: the words a text option may be.
        low, high: bounds of a whole number that do not depend on the model.
        zero: whether a share, which goes up to 1, may be 0.
        amount: it fixes how much is kept, so that no budget is given with it.
        read: `(name, value) -> value` in place of the reader of the field's type.
        compare: off for what a method uses and is not told apart by, such as a loaded model.
    """
    told = {"allowed": None if allowed is None else tuple(allowed), "low": low, "high": high, "zero": zero}
    metadata = {"help": help, "amount": amount, "read": read, **told}
    return dataclasses.field(default=default, metadata=metadata, compare=compare, repr=compare)


def options_in(cls: type) -> dict[str, tuple[dataclasses.Field, Any]]:
    """Option fields of a method's class (all but `tokens`) with their types, "or None" left out."""
    return _options_in(cls)


@cache
def _options_in(cls: Any) -> dict[str, tuple[dataclasses.Field, Any]]:
    hints, out = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if field.name != "tokens":
            kind = hints[field.name]
            if get_origin(kind) in (Union, types.UnionType):
                kind = next(k for k in get_args(kind) if k is not type(None))
            out[field.name] = (field, kind)
    return out


def read(field: dataclasses.Field, kind: Any, value: Any) -> Any:
    """`value` as the type of `field`, or an error that says what is allowed."""
    name, told = field.name, field.metadata
    if value is None and field.default is None:
        return None
    if told.get("read"):
        return told["read"](name, value)
    if told.get("allowed"):
        return choice(name, value, told["allowed"])
    if kind is bool:
        return on_off(name, value)
    if kind is int:
        return integer(name, value, told.get("low"), told.get("high"))
    if kind is float:
        return share(name, value, told.get("zero", True))
    if kind == tuple[int, ...]:
        return integers(name, value)
    if kind == tuple[float, ...]:
        return shares(name, value)
    return value


def spell(value: Any) -> Any:
    """`value` as it is written on a command line and in rows: "on"/"off", "8,16,24", "12:288"; all else unchanged."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple) and all(isinstance(item, (int, float, tuple)) for item in value):
        value = [":".join(map(str, item)) if isinstance(item, tuple) else item for item in value]
        return value[0] if len(value) == 1 else ",".join(map(str, value))
    return value


def on_off(name: str, value: Any) -> bool:
    """True/False from a bool or "on"/"off"."""
    table = {"on": True, "off": False, "true": True, "false": False, True: True, False: False}
    key = value.lower() if isinstance(value, str) else value
    if not isinstance(key, (str, bool, int)) or key not in table:
        raise VisionDropError(f"{name}={value!r}: allowed are 'on' and 'off'")
    return table[key]


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """`value` if it is one of `allowed`."""
    if value not in allowed:
        raise VisionDropError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")
    return value


def integers(name: str, value: Any) -> tuple[int, ...]:
    """A tuple of whole numbers from one number, a sequence, or text such as "8,16,24"."""
    try:
        items = value.strip("[]() ").split(",") if isinstance(value, str) else value
        items = [items] if isinstance(items, int) else items
        return tuple(integer(name, item) for item in items)
    except (TypeError, ValueError):
        raise VisionDropError(f"{name}={value!r}: give whole numbers, e.g. {name}=8,16,24") from None


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """A whole number, in low … high where they are given."""
    try:
        number = int(value)
        if (
            isinstance(value, bool)
            or number != float(value)
            or not (number if low is None else low) <= number <= (number if high is None else high)
        ):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        among = "" if low is None or high is None else f" in {low} … {high}"
        raise VisionDropError(f"{name}={value!r}: allowed are whole numbers{among}") from None
    return number


def share(name: str, value: Any, zero: bool = True) -> float:
    """A number in [0, 1], or in (0, 1]."""
    try:
        number = float(value)
        if not 0 <= number <= 1 or not (number or zero):
            raise ValueError
    except (TypeError, ValueError):
        low = "from 0" if zero else "above 0 and up"
        raise VisionDropError(f"{name}={value!r}: allowed are numbers {low} to 1") from None
    return number


def shares(name: str, value: Any) -> tuple[float, ...]:
    """Numbers in [0, 1]: one, a sequence, or text such as "0.5,0.25,0.125"."""
    if isinstance(value, str):
        value = value.strip("[]() ").split(",")
    return tuple(share(name, item) for item in (value if isinstance(value, Sequence) else [value]))
