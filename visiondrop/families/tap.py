"""Queries and keys of a tower's attention, picked up where every family hands them to its attention backend.

A module chooses its backend by the name in its configuration.  While a method is applied, the one module that scores are
read from has a copy of its configuration that names our function, registered with transformers' `AttentionInterface`
beside the others; it notes queries and keys, as they are after norms and rotation, and calls the backend that stood there.
"""

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..compat import Model
from ..errors import UnsupportedError

NAME = "visiondrop_tap"

Taken = list[tuple[Tensor, Tensor, float]]


class Tap:
    """Notes what one attention module hands to its backend: ([B, H, n, E] queries, keys, scale) of every call."""

    def __init__(self, attention: Model):
        self.attention, self.config = attention, attention.config
        self._here = threading.local()

    def attach(self) -> Callable[[], None]:
        """Stand before the backend; returns the undo."""
        attention, stock = self.attention, self.config
        attention.config = copy.copy(stock)
        attention.config._attn_implementation = NAME
        attention.__dict__["_visiondrop_tap"] = self

        def undo() -> None:
            attention.config = stock
            del attention.__dict__["_visiondrop_tap"]

        return undo

    @contextmanager
    def taking(self) -> Iterator[Taken]:
        """Note the calls that the calling thread makes inside the block."""
        taken: Taken = []
        self._here.taken = taken
        try:
            yield taken
        finally:
            self._here.taken = None

    def refuse_masked(self, mask: Tensor | None) -> None:
        """Refuse a tower that hides patches: a score would count them."""
        if mask is not None and getattr(self._here, "taken", None) is not None:
            visible = mask if mask.dtype == torch.bool else mask == 0
            if not bool(visible.all()):
                raise UnsupportedError(
                    "the tower hides patches (padding inside a tile), which a score would count: give pictures that fill "
                    "their tiles, as the processor makes them by default (leave do_pad and pixel_attention_mask alone)"
                )

    def note(self, query: Tensor, key: Tensor, scale: float) -> None:
        """Called by the backend's stand-in."""
        taken = getattr(self._here, "taken", None)
        if taken is not None:
            taken.append((query.detach(), key.detach(), scale))


def _attention(
    module: Model, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    tap = module.__dict__["_visiondrop_tap"]
    tap.refuse_masked(attention_mask)
    tap.note(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    backend = ALL_ATTENTION_FUNCTIONS.get_interface(tap.config._attn_implementation, eager)
    return backend(module, query, key, value, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, _attention)
