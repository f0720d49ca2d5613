"""The cache of a prompt up to and including its last image, and what continues it.

store = PrefixStore(limit_bytes=2 << 30)                          # least recently used prefixes leave first
prefix = store.get(key) or store.put(key, encode_prefix(model, input_ids=ids, images=pixels))
new_ids = continue_prefix(model, prefix, rows, max_new_tokens=16) # rows: ids after the image, one list a question
"""

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin

from ..compat import CACHE, Model
from ..errors import UnsupportedError, VisionDropError
from ..families.guards import PLACEHOLDER_ID
from ..pruner import current_choice, current_pruner
from ..stack.cache import PrunedCache

FILLER = 0  # stands for visual tokens in ids that are in the cache already


@dataclass(frozen=True)
class Prefix:
    """The cache of a prompt up to and including its last image, for one row.

    Attributes:
        cache: after the prefill; never handed out, only copies that share its tensors.
        ids: [1, length] in unpruned length.
        owner: what chose its tokens, see `current_choice` (None: nothing was applied).
        model: weak reference to the model it was made with; None where that is not known.
        shift: what M-RoPE's positions after it differ by from the number of tokens, [1, 1] long, or None.
    """

    cache: DynamicCache
    ids: Tensor
    owner: Any
    model: Callable[[], Model | None] = field(default=lambda: None, kw_only=True)
    shift: Tensor | None = field(default=None, kw_only=True)

    @property
    def length(self) -> int:
        """Tokens in unpruned length."""
        return self.ids.shape[1]

    @property
    def bytes(self) -> int:
        """Size of its keys and values."""
        layers: list[Any] = self.cache.layers
        return sum(x.numel() * x.element_size() for layer in layers for x in (layer.keys, layer.values))

    def rows(self, count: int) -> DynamicCache:
        """A cache of `count` equal rows.  Keys and values are not copied until the first token is appended to them."""
        out = copy.copy(self.cache)
        layers: list[Any] = [copy.copy(layer) for layer in self.cache.layers]
        out.layers = layers
        for layer in layers:
            layer.keys, layer.values = (x.expand(count, -1, -1, -1) for x in (layer.keys, layer.values))
        if isinstance(out, PrunedCache):
            out.segments = [replace(segment) for segment in out.segments]
        return out


def refuse_text_guided(pruner: Any) -> None:
    """Raise for a method whose scores read the question."""
    if pruner is not None and pruner.plan.text_guided:
        raise UnsupportedError(
            f"method {pruner.method!r} reads the question when it chooses visual tokens, so an image pruned for one "
            "question does not serve another; prefill every question, or use a visual-only method (visiondrop, "
            "visionzip, vispruner, none)"
        )


@torch.no_grad()
def encode_prefix(model: Model, input_ids: Tensor, **inputs: Any) -> Prefix:
    """Prefill a prompt that ends with its last image, under the method applied to `model`.

    Args:
        input_ids: [1, T] whose last id is an image placeholder (-200 for our classes; transformers' classes have one
            placeholder per visual token).
        inputs: the images as the model takes them, e.g. `images=` and `image_sizes=`, or `pixel_values=`.

    Raises:
        UnsupportedError: the method is text-guided.
    """
    pruner = current_pruner(model)
    refuse_text_guided(pruner)
    if input_ids.ndim != 2 or len(input_ids) != 1:
        raise VisionDropError(f"input_ids of shape {tuple(input_ids.shape)}: a prefix is one row, [1, T]")
    cache, ids = prefill(model, input_ids, **inputs)
    return Prefix(cache, ids, current_choice(model), model=weakref.ref(model), shift=_shift(model))


def prefill(model: Model, input_ids: Tensor, **inputs: Any) -> tuple[DynamicCache, Tensor]:
    """A new cache of prompts that end with their image, and the ids [1, length] that the first of them stands for.

    Args:
        input_ids: [R, T] as for `encode_prefix`; all rows have the same text and images of one size.
    """
    cache = DynamicCache(config=getattr(model.config, "text_config", model.config))
    model(input_ids=input_ids, use_cache=True, logits_to_keep=1, **{CACHE: cache}, **inputs)
    plain = input_ids[0][input_ids[0] != PLACEHOLDER_ID]
    ids = torch.full((1, cache.get_seq_length()), FILLER, dtype=torch.long, device=input_ids.device)
    ids[0, : len(plain)] = plain  # which ids have been seen is what logits processors may ask
    return cache, ids


@torch.no_grad()
def continue_prefix(model: Model, prefix: Prefix, rows: Sequence[Sequence[int]], **settings: Any) -> Tensor:
    """Generate behind a prefix for several questions at once.

    Args:
        rows: ids after the image, one list per question, of any lengths >= 1.
        settings: anything of `generate` (`max_new_tokens`, `num_beams`, ...).

    Returns:
        [B or B * num_return_sequences, new] new ids.
    """
    settings.setdefault("pad_token_id", _pad_id(model))
    ids, mask = _lay_out(model, prefix, rows, settings["pad_token_id"])
    static = getattr(model, "static", None)  # of `apply(..., compile=True)`
    answers = None if static is None else static.behind(prefix, rows, **settings)
    if answers is not None:
        return answers
    config = settings.get("generation_config") or model.generation_config
    beams, returned = (settings.get(k) or getattr(config, k) or 1 for k in ("num_beams", "num_return_sequences"))
    cache = prefix.rows(len(ids) * max(beams, returned))
    _set_shift(model, prefix)
    # The library's own generate: the classes' overrides deal with images, and here is none.
    out = GenerationMixin.generate(model, ids, attention_mask=mask, use_cache=True, **{CACHE: cache}, **settings)
    return out[:, ids.shape[1] :] if isinstance(out, Tensor) else out.sequences[:, ids.shape[1] :]


@torch.no_grad()
def next_logits(model: Model, prefix: Prefix, rows: Sequence[Sequence[int]]) -> Tensor:
    """[B, V] logits of the token after each question."""
    ids, mask = _lay_out(model, prefix, rows, _pad_id(model))
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, prefix.length :]
    if prefix.shift is not None:
        positions = (positions + prefix.shift).expand(3, -1, -1)
    output = model(
        input_ids=ids[:, prefix.length :],
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **{CACHE: prefix.rows(len(ids))},
    )
    return output.logits[:, -1]


def _shift(model: Model) -> Tensor | None:
    """What the last prefill of a model with M-RoPE has left on it (its classes keep it there), or None."""
    return getattr(getattr(model, "model", None), "rope_deltas", None)


def _set_shift(model: Model, prefix: Prefix) -> None:
    """Put a prefix's own shift back where the classes with M-RoPE look for it: other prefills came between."""
    if prefix.shift is not None:
        model.model.rope_deltas = prefix.shift


def _pad_id(model: Model) -> int:
    pad = model.generation_config.pad_token_id
    return FILLER if pad is None else pad


def _lay_out(model: Model, prefix: Prefix, rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids, mask), each [B, prefix + longest]: prefix, padding, question."""
    if prefix.owner is not current_choice(model):
        raise VisionDropError(
            "another method was applied to the model, or the method was removed, since the image was encoded; "
            "encode it again"
        )
    if not rows or any(len(row) == 0 for row in rows):
        raise VisionDropError("a question without any token: give at least one id behind the image, for every question")
    width = max(map(len, rows))
    tail = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    device = prefix.ids.device
    ids = torch.cat([prefix.ids.expand(len(rows), -1), tail.to(device)], dim=1)
    return ids, torch.cat([torch.ones_like(ids[:, : prefix.length]), seen.to(device)], dim=1)
