"""What every method is: a frozen dataclass whose fields are its options, with a plan.

@register("mine")
@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    strength: float = option(0.5, "how strongly")

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None: ...
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any, ClassVar

from ..errors import VisionDropError
from ..ops.scores import SCORE_MASKS
from ..plans.budget import Budget
from ..plans.plan import Plan
from ..plans.shape import VisualShape
from .options import option, options_in, read, spell

SCORES = ("visual", "text")


def one_way(tokens: int | None, **amounts: Any) -> None:
    """Check that exactly one is given of: a budget, a preset, explicit amounts.

    Args:
        amounts: the method's options that fix amounts, `preset` among them where it has presets; None = not given.
    """
    given = {name: value for name, value in amounts.items() if value is not None}
    ways = (tokens is not None) + ("preset" in given) + bool(given.keys() - {"preset"})
    if ways == 0:
        others = "".join(f", or {name}=…" for name in amounts)
        raise VisionDropError(f"nothing says how much to keep: give tokens=64 (--tokens 64){others}")
    if ways > 1:
        budget = {} if tokens is None else {"tokens": tokens}
        both = " and ".join(f"{name}={value!r}" for name, value in {**budget, **given}.items())
        raise VisionDropError(f"{both} given together: give the budget, or a preset, or explicit amounts")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method with its settings: a value that can be compared, changed by `dataclasses.replace` and given to `apply`.

    Attributes:
        name: the name it is registered under.
        tokens: the budget, mean visual tokens per decoder layer, or a share of the image's ("22%"); None where amounts are
            explicit or `apply` gives it.
    """

    name: ClassVar[str] = ""
    tokens: Budget = None

    def __post_init__(self):
        """Every option becomes a value of its field's type, whether given in Python or as text."""
        for name, (found, kind) in options_in(type(self)).items():
            object.__setattr__(self, name, read(found, kind, getattr(self, name)))

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """What is done to an image of `shape` at the budget `tokens`; None where the budget cannot be met.

        Args:
            tokens: replaces the field, so that a solver may ask for several; None = explicit amounts.
        """
        raise NotImplementedError(f"{type(self).__name__} has no plan")

    def options(self) -> dict[str, Any]:
        """The options that are not at their defaults, spelled as on a command line."""
        found = {f.name: (getattr(self, f.name), f.default) for f, _ in options_in(type(self)).values()}
        return {name: spell(value) for name, (value, default) in found.items() if value is not default != value}

    def amounts(self) -> dict[str, Any]:
        """The options that fix how much is kept, None where not given, a preset first."""
        names = [f.name for f in fields(self) if f.metadata.get("amount")]
        return {name: getattr(self, name) for name in sorted(names, key=lambda name: name != "preset")}

    @property
    def fixed(self) -> bool:
        """Whether its own options say how much is kept, so that no budget is to be given."""
        return any(value is not None for value in self.amounts().values())

    def one_way(self, tokens: int | None) -> None:
        """Check that a budget, a preset or explicit amounts are given, and only one of them."""
        one_way(tokens, **self.amounts())


@dataclass(frozen=True, kw_only=True)
class InDecoder(Method):
    """A method that acts inside the language model, where positions of the tokens that stay are a choice of their own."""

    positions: str | None = option(
        None,
        "compact (what is left is numbered anew) or original (every token keeps its position, a merged one its "
        "reference's); default: the method's own",
        allowed=("compact", "original"),
    )

    def placed(self, plan: Plan) -> Plan:
        """`plan` with the positions that are asked for."""
        return plan if self.positions is None else replace(plan, positions=self.positions)


def check_score(score: str, score_mask: str) -> None:
    """Check a decoder stage's `score` and `score_mask`, which only visual scores have."""
    if score == "text" and score_mask != SCORE_MASKS[0]:
        raise VisionDropError(f"score_mask={score_mask!r}: a mask needs score='visual', not 'text'")


def from_function(name: str, function: Callable[..., Plan | None]) -> type[Method]:
    """A method's class from `plan(tokens, shape, **options)`: its keyword arguments are the fields, values as given."""
    parameters = list(inspect.signature(function).parameters.values())[2:]
    options = [(p.name, Any, field(default=None if p.default is p.empty else p.default)) for p in parameters]

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        return function(tokens, shape, **{p.name: getattr(self, p.name) for p in parameters})

    cls = make_dataclass(name, options, bases=(Method,), namespace={"plan": plan}, frozen=True, kw_only=True)
    cls.__doc__ = function.__doc__
    return cls
