"""Where results are held between calls: by fingerprints of what they were made of, bounded by bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..errors import VisionDropError

Value = TypeVar("Value")


def fingerprint(*parts: Any) -> str:
    """A key for `Recent` from tensors, PIL images and anything with a stable repr, e.g. pixels and ids."""
    digest = hashlib.sha1(usedforsecurity=False)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            digest.update(part.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
        elif hasattr(part, "tobytes"):
            digest.update(f"{getattr(part, 'mode', '')}{getattr(part, 'size', '')}".encode() + part.tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


class Recent(Generic[Value]):
    """Values by key, the least recently used leaving first when their bytes exceed the limit.

    Attributes:
        limit_bytes: most bytes held; a value above it is not held at all.
        bytes, hits, misses: bytes held now, and how `get` fared.
    """

    def __init__(self, limit_bytes: int):
        if limit_bytes < 0:
            raise VisionDropError(f"limit_bytes={limit_bytes}: a number of bytes >= 0")
        self.limit_bytes, self.bytes, self.hits, self.misses = limit_bytes, 0, 0, 0
        self._held: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> Value | None:
        """The value of `key`, now the most recently used, or None."""
        found = self._held.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._held.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: Value, size: int) -> Value:
        """Hold `value` of `size` bytes, as far as the limit allows; returns it."""
        self.drop(key)
        if size <= self.limit_bytes:
            while self.bytes + size > self.limit_bytes:
                self.drop(next(iter(self._held)))
            self._held[key] = value, size
            self.bytes += size
        return value

    def drop(self, key: Hashable) -> None:
        """Let go of one value, if it is held."""
        if key in self._held:
            self.bytes -= self._held.pop(key)[1]

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()
        self.bytes = 0
