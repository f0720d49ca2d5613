"""What is asked for one image: a method with its budget, the server's own or the request's, in one canonical spelling.

The spelling is part of what vLLM hashes an image by, so that images pruned in different ways never meet in a cache, and
it travels with the pixels, as bytes of a fixed length, to the process that encodes them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import VisionDropError, closest
from ..methods.registry import check_options, parse
from ..plans.budget import Budget

NAME = "visiondrop"  # of the settings in a configuration (--hf-overrides) and in a request (mm_processor_kwargs)
ROW_BYTES = 1024
OF_A_REQUEST = ("method", "tokens", "options", "min_tokens")
OF_A_SERVER = (*OF_A_REQUEST, "most_tokens")


@dataclass(frozen=True)
class Setting:
    """A method, its budget and its options, as `visiondrop.apply` takes them; `options` are (name, value) pairs, sorted."""

    method: str = "none"
    tokens: Budget = None
    options: tuple[tuple[str, Any], ...] = ()
    min_tokens: int = 0

    @property
    def text(self) -> str:
        """The canonical spelling; equal for equal settings."""
        told = {"method": self.method, "tokens": self.tokens, "options": dict(self.options)}
        return json.dumps({**told, "min_tokens": self.min_tokens}, sort_keys=True, ensure_ascii=False)

    def row(self) -> Tensor:
        """[ROW_BYTES] uint8, the canonical spelling and zeros behind it."""
        held = self.text.encode()
        if len(held) > ROW_BYTES:
            raise VisionDropError(
                f"the settings of method {self.method!r} take {len(held)} bytes: allowed are {ROW_BYTES}; leave options out"
            )
        return torch.frombuffer(bytearray(held.ljust(ROW_BYTES, b"\0")), dtype=torch.uint8)

    @classmethod
    def from_row(cls, row: Tensor) -> "Setting":
        """Back from `row`."""
        return cls.from_text(bytes(row.tolist()).rstrip(b"\0").decode())

    @classmethod
    def from_text(cls, text: str) -> "Setting":
        """Back from `text`."""
        told = json.loads(text)
        options = tuple(sorted((name, _frozen(value)) for name, value in told["options"].items()))
        return cls(told["method"], told["tokens"], options, told["min_tokens"])


@dataclass(frozen=True)
class Served:
    """What the operator has set.

    Attributes:
        default: for requests that say nothing; most_tokens: the most tokens that an image may enter the language model with,
            whatever a request asks for, or None.
    """

    default: Setting = Setting()
    most_tokens: int | None = None

    @classmethod
    def of(cls, config: Any) -> "Served":
        """From a model's configuration, whose `visiondrop` comes from --hf-overrides; nothing there: no pruning.

        Raises:
            VisionDropError: an unknown name, method or option.
        """
        told = _mapping(getattr(config, NAME, None) or {}, OF_A_SERVER, f"--hf-overrides '{NAME}'")
        most = told.pop("most_tokens", None)
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise VisionDropError(
                f"most_tokens={most!r}: give the whole number of tokens that an image may have at most"
            )
        return cls(_read(told, Setting()), most)

    def asked(self, told: Any) -> Setting:
        """The setting of a request: what it leaves out is the server's.

        A method brings its own options, and where these say how much is kept, no budget; "none" has none either.

        Args:
            told: a mapping with `method`, `tokens`, `options` and `min_tokens`, or None.

        Raises:
            VisionDropError: see `of`.
        """
        if told is None:
            return self.default
        return _read(_mapping(told, OF_A_REQUEST, f"mm_processor_kwargs '{NAME}'"), self.default)


def _mapping(told: Any, allowed: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(told, Mapping):
        raise VisionDropError(
            f'{where} is {told!r}: give a mapping, e.g. {{"{NAME}": {{"method": "visionzip", "tokens": 64}}}}'
        )
    for name in told:
        if name not in allowed:
            raise VisionDropError(f"{where} has an unknown entry {name!r}: {closest(name, allowed)}")
    return dict(told)


def _read(told: dict[str, Any], default: Setting) -> Setting:
    method, options = told.get("method", default.method), told.get("options")
    if not isinstance(method, str) or not isinstance(options or {}, Mapping):
        raise VisionDropError(f"method={method!r}, options={options!r}: give a name and a mapping of options")
    same = method == default.method
    options = dict(default.options if options is None and same else options or {})
    check_options(method, options)
    found = Setting(method, told.get("tokens"), tuple(sorted((k, _frozen(v)) for k, v in options.items())))
    if "tokens" not in told and method != "none" and not parse(method, None, options).fixed:
        found = replace(found, tokens=default.tokens, min_tokens=default.min_tokens)
    least = told.get("min_tokens", found.min_tokens)
    if isinstance(least, bool) or not isinstance(least, int) or least < 0:
        raise VisionDropError(f"min_tokens={least!r}: give a whole number of tokens, 0 or more")
    return replace(found, min_tokens=least)


def _frozen(value: Any) -> Any:
    """An option's value from JSON, hashable."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    raise VisionDropError(f"option value {value!r}: give text, a number or a list of them")
