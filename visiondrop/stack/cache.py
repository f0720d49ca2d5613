"""A key/value cache whose layers have their own lengths, while the world outside sees only unpruned ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from ..errors import UnsupportedError


@dataclass
class Segment:
    """A run of layers that hold the same tokens.

    Attributes:
        first: first layer of the run.
        valid: [B, length] bool, False for padding; None = no padding, known without looking.
        count: number of valid entries per row: an int where all rows agree, else [B] long.  It is the position of
            the next token under "compact" positions.
    """

    first: int
    valid: Tensor | None
    count: int | Tensor

    def map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply `change` to every tensor with a batch axis."""
        self.valid = None if self.valid is None else change(self.valid)
        self.count = self.count if isinstance(self.count, int) else change(self.count)


class PrunedCache(DynamicCache):
    """`DynamicCache` with a logical (unpruned) length and physical lengths per layer.

    `get_seq_length()` without an argument is logical, as `generate` needs it; `get_seq_length(i)`,
    `get_query_offset(i)` and `get_mask_sizes(q, i)` are physical.  Beam reordering, cropping and row selection change
    the bookkeeping together with the keys and values.
    """

    logical: int
    segments: list[Segment]

    @classmethod
    def adopt(cls, cache: Any, attention_mask: Tensor | None) -> "PrunedCache":
        """Turn `cache` into a `PrunedCache` in place.

        In place, because a caller who made the cache passes it again in the next pass: a new object with its layers would
        leave that caller with the layers' physical lengths, which the next pass would take for the prompt's.

        Args:
            cache: an empty or unpruned `DynamicCache`; a `PrunedCache` is returned as it is.
            attention_mask: [B, past + new] of the coming forward, used for the past of a non-empty cache.
        """
        if isinstance(cache, cls):
            return cache
        if type(cache) is not DynamicCache or getattr(cache, "offloading", False) or any(cache.is_sliding):
            raise UnsupportedError(
                f"pruning needs a plain DynamicCache, got {type(cache).__name__}"
                f"{' with offloading' if getattr(cache, 'offloading', False) else ''}; static, quantised, sliding and "
                "offloaded caches assume one length for all layers (leave out cache_implementation / past_key_values)"
            )
        past = cache.get_seq_length()
        cache.__class__ = cls
        adopted = cast(PrunedCache, cache)
        adopted.logical = past
        valid = None if attention_mask is None or past == 0 else attention_mask[:, :past].bool()
        if valid is not None and bool(valid.all()):
            valid = None
        adopted.segments = [] if past == 0 else [Segment(0, valid, past if valid is None else valid.sum(1))]
        return adopted

    def segment_of(self, layer: int) -> Segment | None:
        """The segment that holds `layer`, or None in an empty cache."""
        return next((s for s in reversed(self.segments) if s.first <= layer), None)

    def split(self, layer: int) -> Segment:
        """The segment that starts at `layer`, cut from the one that holds it where necessary."""
        segment = self.segment_of(layer) or Segment(-1, None, 0)
        if segment.first != layer:
            segment = Segment(layer, segment.valid, segment.count)
            self.segments.append(segment)
            self.segments.sort(key=lambda s: s.first)
        return segment

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Logical length, or the physical one of a layer."""
        return self.logical if layer_idx is None else super().get_seq_length(layer_idx)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Physical number of cached entries before the next query in `layer_idx`."""
        return super().get_seq_length(layer_idx)

    def physical_lengths(self) -> list[int]:
        """Cached entries of every layer, padding included."""
        return [super(PrunedCache, self).get_seq_length(i) for i in range(len(self.layers))]

    def reset(self) -> None:
        """Empty the cache."""
        super().reset()
        self.logical, self.segments = 0, []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows, as beam search does."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._map_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._map_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._map_rows(lambda x: x[indices.to(x.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -tokens_to_remove tokens, which must have come after the prompt."""
        tokens_to_remove = int(tokens_to_remove)  # assisted decoding counts on the device
        removed = -tokens_to_remove if tokens_to_remove <= 0 else self.logical - tokens_to_remove
        if removed <= 0:
            return
        super().crop(-removed)
        self.logical -= removed
        for segment in self.segments:
            if segment.valid is None:
                segment.count = segment.count - removed
            else:
                segment.count = segment.count - segment.valid[:, -removed:].sum(1)
                segment.valid = segment.valid[:, :-removed]

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for segment in self.segments:
            segment.map_rows(change)


def extend(segment: Segment, valid: Tensor | None, rows: int, length: int, device: torch.device) -> None:
    """Record `length` new entries in a segment: `valid` [B, length], or None when none of them is padding."""
    if segment.valid is None and valid is None:
        segment.count = segment.count + length
        return
    old = segment.valid
    if old is None:  # then all rows agree
        old = torch.ones(rows, int(segment.count), dtype=torch.bool, device=device)
    new = valid if valid is not None else torch.ones(rows, length, dtype=torch.bool, device=device)
    segment.valid = torch.cat([old, new], dim=1)
    segment.count = segment.count + (length if valid is None else new.sum(1))
