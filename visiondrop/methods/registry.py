"""Methods by name.  A method is one file: a dataclass with a plan (see `methods.method`), and its selectors.

A plain function `plan(tokens, shape, *, option=default) -> Plan | None` may be registered too; its keyword arguments
are the options.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import MISSING, is_dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import VisionDropError, closest
from ..plans.budget import Budget, count_of, is_name, out_of_reach, reachable, scaling_notes, share_of
from ..plans.plan import Plan, writable
from ..plans.presets import preset_share
from ..plans.shape import VisualShape
from .composed import JOIN, Composed
from .method import Method, from_function
from .options import options_in, spell

_METHODS: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[Any], Any]:
    """Decorator: make a `Method` class, or a plan function, available as `name`; a later one replaces an earlier."""

    def add(given: Any) -> Any:
        cls = given if isinstance(given, type) else from_function(name, given)
        if not (issubclass(cls, Method) and is_dataclass(cls) and "__dataclass_params__" in vars(cls)):
            raise VisionDropError(
                f"register({name!r}) of {cls.__name__}: give a plan function, or a subclass of `visiondrop.Method` that is "
                "a dataclass itself: @dataclass(frozen=True, kw_only=True)"
            )
        cls.name = name
        _METHODS[name] = cls
        return given

    return add


def _load_builtin() -> None:
    for module in pkgutil.walk_packages([str(Path(__file__).parent)], f"{__package__}."):
        importlib.import_module(module.name)


def available() -> list[str]:
    """Names of all registered methods, sorted."""
    _load_builtin()
    return sorted(_METHODS)


def method_class(name: str) -> type[Method]:
    """The class registered as `name`."""
    names = available()
    if name not in names:
        raise VisionDropError(f"unknown method {name!r}: {closest(name, names)}")
    return _METHODS[name]


def _parts(name: str) -> dict[str, str]:
    """{"encoder": name, "decoder": name} of "name+name"."""
    parts = name.split(JOIN)
    if len(parts) != 2:
        raise VisionDropError(f"method {name!r}: two methods can be joined, an encoder stage first: vispruner+fastv")
    return dict(zip(("encoder", "decoder"), parts))


def options_of(name: str) -> dict[str, Any]:
    """Option names of a method and their defaults, as written on a command line."""
    if JOIN in name:
        nested = {f"{at}.{k}": v for at, part in _parts(name).items() for k, v in options_of(part).items()}
        return {"encoder_share": None, **nested}
    fields = [f for f, _ in options_in(method_class(name)).values()]
    return {f.name: None if f.default is MISSING else spell(f.default) for f in fields}


def check_options(method: str, options: dict[str, Any]) -> None:
    """Refuse an unknown method or option, naming the closest ones."""
    allowed = options_of(method)
    for name in options:
        if name not in allowed:
            raise VisionDropError(f"method {method!r} has no option {name!r}: {closest(name, allowed)}")


def parse(method: str, tokens: Budget = None, options: dict[str, Any] | None = None) -> Method:
    """The method called `method` with options in Python or as text: parse("visiondrop", 64, {"merge": "off"}).

    "vispruner+fastv" is `compose(encoder=VisPruner(...), decoder=FastV(...))`, with options `encoder.x` and `decoder.y`.
    """
    options = dict(options or {})
    check_options(method, options)
    if JOIN not in method:
        return method_class(method)(tokens=tokens, **options)
    parts = {}
    for at, name in _parts(method).items():
        own = {k.split(".", 1)[1]: v for k, v in options.items() if k.startswith(f"{at}.")}
        parts[at] = method_class(name)(**own)
    return Composed(tokens=tokens, encoder_share=options.get("encoder_share"), **parts)


def request(method: str | Method, tokens: Budget, options: dict[str, Any]) -> tuple[str, Budget, dict[str, Any]]:
    """(name, budget, options) of a method given by name or as a value, as rows and ledgers record it."""
    if isinstance(method, str):
        return method, tokens, options
    if not isinstance(method, Method):
        raise VisionDropError(
            f"method {method!r}: give a name, e.g. 'visiondrop', or a value, e.g. VisionDrop(tokens=64)"
        )
    if options or (tokens is not None and method.tokens not in (None, tokens)):
        more = {**({} if tokens is None else {"tokens": tokens}), **options}
        raise VisionDropError(
            f"{', '.join(f'{k}={v!r}' for k, v in more.items())} beside {method!r}: set it in the value"
        )
    if not method.name:
        raise VisionDropError(
            f"{type(method).__name__} has no name: decorate the class with @visiondrop.register('name')"
        )
    return method.name, method.tokens if tokens is None else tokens, method.options()


def make_plan(method: str, tokens: Budget, shape: VisualShape, options: dict[str, Any], min_tokens: int = 0) -> Plan:
    """Build the plan of `method`, turning an unreachable budget into an error that says what is reachable.

    Args:
        tokens: the budget, mean visual tokens per decoder layer; a share of the image's ("22%", 0.22) is the smallest
            reachable budget that is no less; a name ("qwen2.5-vl-25"): a published setting.  None where the options give explicit amounts.
        shape: model depth and image size.
        options: the method's own options; unknown names are refused.
        min_tokens: the least that a share may come to, where the image has as many.
    """
    check_options(method, options)
    if is_name(tokens):
        tokens = preset_share(method, tokens)
    share = share_of(tokens)
    count = count_of(tokens, share, shape, min_tokens)
    value = parse(method, None, options)
    plan = value.plan(count, shape)
    if plan is None:
        good = reachable(value.plan, shape)
        upwards = [t for t in good if share is not None and t > count]
        if not upwards:
            raise out_of_reach(method, count, shape, good)
        count = upwards[0]
        plan = value.plan(count, shape)
    notes = plan.notes + (() if count is None else scaling_notes(plan, shape))
    told = {name: value for name, value in options.items() if writable(value)}
    return replace(plan, method=method, tokens=count, share=share, options=told, notes=notes)
