"""What differs within the supported range of transformers: the name of the cache argument, and where layers checkpoint.

transformers 5.24 renamed `past_key_values` to `cache` in every forward, mask function and output, and warns of the old
name.  Callers of ours may use either; what we call gets the one it knows.

`Model` is a model of transformers, or a part of one, in annotations: torch types every attribute of a module as
`Tensor | Module`, which says nothing of theirs.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
import transformers
from transformers.modeling_layers import GradientCheckpointingLayer

CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"
# Older releases recompute a layer with its hooks, newer ones without them.
HOOKS_RUN_AGAIN = "__call__" in vars(GradientCheckpointingLayer)
NAMES = ("cache", "past_key_values")
Model: TypeAlias = Any


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among keyword arguments, under whichever name, or None."""
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)


def with_cache(arguments: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """The keyword arguments with `cache` under the name that the installed transformers knows."""
    return {**{name: value for name, value in arguments.items() if name not in NAMES}, CACHE: cache}


def will_recompute(stack: Model) -> bool:
    """Whether the layers of a decoder stack will run a second time for their gradients (gradient checkpointing)."""
    if not torch.is_grad_enabled():
        return False
    layer = stack.layers[0]
    return getattr(layer, "gradient_checkpointing", False) and layer.training
