"""Reads GGUF, llama.cpp's file format: metadata and dequantised tensors, as far as the pretrained testbed needs them.

    file = GgufFile(path)
    file.metadata["llama.block_count"], file.tensor("token_embd.weight")      # 30, float32 [49152, 576]

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tensor types read: F32, F16, Q4_1, Q8_0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visiondrop.errors import VisionDropError

_MAGIC, _STRING, _ARRAY = b"GGUF", 8, 9
# Value types of the metadata by number, as struct's letters.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Tensor types by number: name, weights in a block, bytes of a block.
TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: shape as torch states it (rows first), type number, offset in bytes from the data's start."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """A GGUF file of version 2 or 3, little-endian, its data read on demand.

    metadata: plain values by key; entries: tensors by name.
    Raises VisionDropError where the file is no GGUF, is cut short, or (in `tensor`) holds a type that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._data = np.memmap(self.path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise VisionDropError(f"cannot read {self.path}: {error}.") from error
        self._at = 0
        if bytes(self._data[:4]) != _MAGIC:
            raise VisionDropError(f"{self.path} is not a GGUF file: it begins with {bytes(self._data[:4])!r}.")
        try:
            self._at = 4
            version, tensors, values = self._scalar("I"), self._scalar("Q"), self._scalar("Q")
            if version not in (2, 3):
                raise VisionDropError(f"{self.path} is GGUF version {version}: versions 2 and 3 are read.")
            self.metadata: dict[str, Any] = {}
            for _ in range(values):
                key = self._string()
                self.metadata[key] = self._value(self._scalar("I"))
            self.entries = dict(self._entry() for _ in range(tensors))
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise VisionDropError(f"{self.path} is damaged or cut short ({error}): download it again.") from error
        alignment = self.metadata.get("general.alignment", 32)
        self._start = -(-self._at // alignment) * alignment

    def tensor(self, name: str) -> np.ndarray:
        """A tensor, dequantised to float32."""
        if name not in self.entries:
            raise VisionDropError(f"{self.path} holds no tensor {name!r}: it is not the expected model.")
        entry = self.entries[name]
        if entry.kind not in TYPES:
            known = ", ".join(name for name, _, _ in TYPES.values())
            raise VisionDropError(f"{name!r} in {self.path} has GGUF type {entry.kind}: {known} are read.")
        kind, block, size = TYPES[entry.kind]
        total = int(np.prod(entry.shape)) // block * size
        raw = np.asarray(self._data[self._start + entry.offset :][:total])
        if len(raw) < total:
            raise VisionDropError(f"{self.path} is cut short inside {name!r}: download it again.")
        return dequantise(kind, raw).reshape(entry.shape)

    def _entry(self) -> tuple[str, Entry]:
        name, dimensions = self._string(), self._scalar("I")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        return name, Entry(shape, self._scalar("I"), self._scalar("Q"))

    def _scalar(self, letter: str):
        size = struct.calcsize("<" + letter)
        (value,) = struct.unpack("<" + letter, bytes(self._data[self._at : self._at + size]))
        self._at += size
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        text = bytes(self._data[self._at : self._at + length])
        if len(text) < length:
            raise struct.error("a string ends after the file")
        self._at += length
        return text.decode("utf-8")

    def _value(self, kind: int):
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._scalar("I"), self._scalar("Q")
            return [self._value(inner) for _ in range(count)]
        return self._scalar(_SCALARS[kind])


def dequantise(kind: str, raw: np.ndarray) -> np.ndarray:
    """Bytes (uint8 [n]) of a tensor type to float32 [weights].

    Q4_1: 32 weights share a float16 scale d and minimum m; w = d q + m, the low halves of the 16 bytes first.
    Q8_0: 32 weights share a float16 scale d; w = d q.
    """
    if kind in ("F32", "F16"):
        return raw.view({"F32": "<f4", "F16": "<f2"}[kind]).astype(np.float32)
    blocks = raw.reshape(-1, {name: size for name, _, size in TYPES.values()}[kind])
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    if kind == "Q8_0":
        return (scale * blocks[:, 2:].view(np.int8)).reshape(-1)
    least = np.ascontiguousarray(blocks[:, 2:4]).view("<f2").astype(np.float32)
    packed = blocks[:, 4:]
    return (scale * np.concatenate([packed & 15, packed >> 4], 1) + least).reshape(-1)
