"""Which adapter serves which model class, and who can load a checkpoint.

A package that brings model classes of its own registers their adapter when it is imported:

    @register("MyForCausalLM")
    class MyAdapter: ...
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..compat import Model
from ..errors import UnsupportedError, VisionDropError
from .table import REFUSED

LOADER = "llava.adapter"  # the module whose `load` opens checkpoints by path or id, named so that nothing here needs it
_ADAPTERS: dict[str, Callable[[Model], Any]] = {}


def register(*names: str) -> Callable[[type], type]:
    """Decorator: an adapter class serves the model classes called `names`, and classes derived from them."""

    def add(adapter: type) -> type:
        _ADAPTERS.update(dict.fromkeys(names, adapter))
        return adapter

    return add


def adapter_for(model: Model) -> Any:
    """The adapter of `model`.

    Raises:
        VisionDropError: no adapter is registered for its class; the message names those that are.
        UnsupportedError: its decoder has a sliding window, which scores and masks of a pruned stack do not have.
    """
    config = getattr(model, "config", None)
    window = getattr(getattr(config, "text_config", None) or config, "sliding_window", None)
    if window is not None:
        raise UnsupportedError(
            f"the decoder of this {type(model).__name__} has a sliding window of {window} tokens, and pruning scores and "
            "masks without one; where prompts and answers stay shorter, set model.config.text_config.sliding_window = "
            "None first, as LLaVA's own Mistral checkpoints do"
        )
    for kind in type(model).__mro__:
        if kind.__name__ in _ADAPTERS:
            return _ADAPTERS[kind.__name__](model)
        if kind.__name__ in REFUSED:
            raise UnsupportedError(f"{kind.__name__} cannot be pruned: {REFUSED[kind.__name__]}")
    raise VisionDropError(f"no adapter for {type(model).__name__}: supported are {', '.join(_ADAPTERS)}")


def loader() -> Any:
    """The module whose `load` opens a checkpoint (`llava.adapter`).

    Raises:
        VisionDropError: it cannot be imported.
    """
    try:
        return import_module(LOADER)
    except ImportError as error:
        raise VisionDropError(
            f"loading a checkpoint needs the llava package, which comes with visiondrop ({error}); run it from the "
            "repository's folder after bash scripts/setup.sh, or: pip install visiondrop"
        ) from error
