"""Greedy decoding with static shapes: keys and values in buffers with room for new tokens, one step that never changes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from visiondrop.compat import CACHE

from .replay import CompiledLayers, Notice, Replay, put

ROOMS = (32, 128, 512, 2048, 8192, 32768)  # new tokens a step's attention reaches over


def room_for(tokens: int) -> int:
    """The smallest room that holds so many new tokens."""
    return next(room for room in ROOMS if room >= tokens)


class FixedLayer(DynamicLayer):
    """One layer of the cache of a prefill: what it is given goes into the first columns of a buffer."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self._buffers = keys, values

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep [B, H, n, E] keys and values; a second call would have to move them and is never made."""
        self.keys, self.values = (x[:, :, : key.shape[2]] for x in self._buffers)
        self.keys.copy_(key)
        self.values.copy_(value)
        self.is_initialized = True
        return key, value


class FixedCache:
    """Keys and values of every layer, [B, H, n_l + room, E]; what a layer needs of a cache.

    Attributes:
        lengths: n_l, columns of the prompt in every layer, those behind a row's last token included.
        spare: [B] long, columns after each row's last token: new tokens are written over them.
        step: [1] long, new tokens so far.
        reach: how many new tokens a step looks at; at most `room`.
    """

    def __init__(self, model: nn.Module, lengths: list[int], rows: int, room: int):
        config, self.lengths, self.room, self.reach = model.config, lengths, room, room
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.keys, self.values = (
            [torch.zeros(rows, config.num_key_value_heads, n + room, width, **_like(model)) for n in lengths]
            for _ in range(2)
        )
        self.spare = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.step = torch.zeros(1, dtype=torch.long, device=model.device)
        self.at: Tensor | None = None

    def empty(self, config) -> DynamicCache:
        """A cache for a prefill, which writes into the buffers."""
        cache = DynamicCache(config=config)
        cache.layers = [FixedLayer(k, v) for k, v in zip(self.keys, self.values, strict=True)]
        return cache

    def load(self, prefilled: DynamicCache) -> None:
        """Begin behind a prefill that was made elsewhere, of as many rows or of one, which all rows share."""
        for layer, *buffers in zip(prefilled.layers, self.keys, self.values, strict=True):
            for buffer, given in zip(buffers, (layer.keys, layer.values)):
                buffer[:, :, : given.shape[2]].copy_(given)
        self.step.zero_()

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put new tokens in their places; returns all keys and values in reach, valid or not."""
        keys, values, at = self.place(layer)
        put(keys, at, key)
        put(values, at, value)
        return keys, values

    def place(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """(keys and values in reach, columns of the new tokens [B or 1, 1, T, 1])."""
        end = self.lengths[layer] + self.reach
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end], self.at

    def segments(self) -> dict[int, int]:
        """First layer -> columns of the prompt, for every run of layers of equal length."""
        return {i: n for i, n in enumerate(self.lengths) if i == 0 or n != self.lengths[i - 1]}

    def grown(self, model: nn.Module, room: int) -> "FixedCache":
        """The same contents with more room."""
        out = FixedCache(model, self.lengths, len(self.spare), room)
        for new, old in zip((*out.keys, *out.values), (*self.keys, *self.values)):
            new[:, :, : old.shape[2]].copy_(old)
        out.spare.copy_(self.spare)
        out.step.copy_(self.step)
        return out


def _like(model: nn.Module) -> dict[str, Any]:
    return {"dtype": model.dtype, "device": model.device}


class Decoder:
    """Greedy steps behind a prompt.

    Attributes:
        token: [B, 1] the last new token; out: [B, room + 1] all of them, the prompt's own next token first.
        logits: [B, 1, V] of the last pass.
    """

    def __init__(
        self,
        model: nn.Module,
        lengths: list[int],
        logical: int,
        rows: int,
        room: int,
        layers: CompiledLayers | None = None,
        pool: object = None,
        notice: Notice | None = None,
    ):
        """Args:
        lengths: columns of the prompt in every layer; logical: in unpruned length.
        room: for new tokens; more is made where needed.
        layers, pool, notice: see `Replay`.
        """
        self.model, self.logical, self.how = model, logical, {"layers": layers, "pool": pool, "notice": notice}
        self.compact = model.pruner is None or model.pruner.compact
        # What positions count: unpruned tokens, or those that the first layer holds.
        entry = not self.compact and model.pruner.plan.positions == "entry"
        self.numbered = lengths[0] if entry else logical
        self.cache = FixedCache(model, lengths, rows, room)
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.out = torch.zeros(rows, room + 1, dtype=torch.long, device=model.device)
        self.logits = torch.zeros(rows, 1, model.config.vocab_size, **_like(model))
        self._steps: dict[int, Replay] = {}

    def reserve(self, room: int) -> bool:
        """Have room for so many new tokens; True where the buffers had to be replaced."""
        if room <= self.cache.room:
            return False
        self.cache, self._steps = self.cache.grown(self.model, room), {}
        self.out = torch.nn.functional.pad(self.out, (0, room + 1 - self.out.shape[1]))
        return True

    def decode(self, number: int) -> bool:
        """New token `number` (1 is the first after the prompt's own); True where the buffers had to be replaced."""
        room = room_for(number)
        grown = self.reserve(room)
        self.cache.reach = min(room, self.cache.room)
        if room not in self._steps:
            state = self.token, self.cache.step, self.out, self.logits
            self._steps[room] = Replay(self._step, self.model.device, state, **self.how)
        self._steps[room]()
        return grown

    def first(self, hidden: Tensor) -> None:
        """Take the token after the prompt from its last states [B, 1, D]."""
        self.logits.copy_(self.model.lm_head(hidden))
        self.token.copy_(self.logits.argmax(-1))
        self.cache.step.zero_()
        self.out[:, :1].copy_(self.token)

    def read(self, ids: Tensor) -> Tensor:
        """The prompt's last columns, from ids [B, A], after what the cache already holds: states [B, A, D]."""
        self.cache.reach = 0
        behind = torch.arange(-ids.shape[1], 0, device=ids.device)[None]
        return self._through(ids, lambda length: length + behind)

    def _step(self) -> None:
        """`token` -> the next `token`, noted in `out`."""
        cache = self.cache
        hidden = self._through(self.token, lambda length: (length + cache.step - cache.spare)[:, None])
        self.logits.copy_(self.model.lm_head(hidden))
        self.token.copy_(self.logits.argmax(-1))
        cache.step.add_(1)
        self.out.index_copy_(1, cache.step, self.token)

    def _through(self, ids: Tensor, columns: Callable[[int], Tensor]) -> Tensor:
        """New ids [B, T] through the stack: [B, T, D]; `columns`: length of the prompt in a layer -> [B or 1, T]."""
        stack, segments, arguments = self.model.model, self.cache.segments(), {}
        hidden = stack.embed_tokens(ids)
        for i, layer in enumerate(stack.layers):
            if i in segments:
                arguments = self._arguments(hidden, segments[i], columns(segments[i]))
            hidden = layer(hidden, use_cache=True, position_ids=None, **{CACHE: self.cache}, **arguments)
        return stack.norm(hidden)

    def _arguments(self, hidden: Tensor, length: int, at: Tensor) -> dict[str, Any]:
        """Mask and rotary embedding of the layers in which the prompt has `length` columns; tells the cache where."""
        cache, config = self.cache, self.model.config
        seen = torch.arange(length + cache.reach, device=hidden.device) <= at[:, :, None]
        mask = seen[:, None]
        if config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        cache.at = at[:, None, :, None]
        position = at if self.compact else at + (self.numbered - length)
        rope = self.model.model.rotary_emb(hidden, position_ids=position)
        return {"attention_mask": mask, "position_embeddings": rope}
