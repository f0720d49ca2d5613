"""Where prefixes are held between calls: by fingerprints of what they were made of, bounded by bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import VisionDropError

if TYPE_CHECKING:
    from .prefix import Prefix


def fingerprint(*parts: Any) -> str:
    """A key for `PrefixStore` from tensors, PIL images and anything with a stable repr, e.g. pixels and ids."""
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


class PrefixStore:
    """Prefixes by key, the least recently used leaving first when their bytes exceed the limit.

    Attributes:
        limit_bytes: most bytes of keys and values held; a prefix above it is not held at all.
        bytes, hits, misses: bytes held now, and how `get` fared.
    """

    def __init__(self, limit_bytes: int):
        if limit_bytes < 0:
            raise VisionDropError(f"limit_bytes={limit_bytes}: a number of bytes >= 0")
        self.limit_bytes, self.bytes, self.hits, self.misses = limit_bytes, 0, 0, 0
        self._held: OrderedDict[Hashable, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> Prefix | None:
        """The prefix of `key`, now the most recently used, or None."""
        prefix = self._held.get(key)
        if prefix is None:
            self.misses += 1
            return None
        self.hits += 1
        self._held.move_to_end(key)
        return prefix

    def put(self, key: Hashable, prefix: Prefix) -> Prefix:
        """Hold `prefix`, as far as the limit allows; returns it."""
        self.drop(key)
        if prefix.bytes <= self.limit_bytes:
            while self.bytes + prefix.bytes > self.limit_bytes:
                self.drop(next(iter(self._held)))
            self._held[key] = prefix
            self.bytes += prefix.bytes
        return prefix

    def drop(self, key: Hashable) -> None:
        """Let go of one prefix, if it is held."""
        if key in self._held:
            self.bytes -= self._held.pop(key).bytes

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()
        self.bytes = 0
