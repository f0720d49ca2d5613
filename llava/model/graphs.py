"""Greedy generation with static shapes: prefill and decoding step are captured once as CUDA graphs and replayed.

A budget fixes every length, so one graph per (method, budget, batch, prompt lengths) serves all images and questions
of these lengths, and the host no longer launches kernels one by one, which is most of the time at batch 1.

    generator = GraphedGenerator(model, max_new_tokens=32)
    new_ids = generator.generate(input_ids, images=pixels)      # same answers as model.generate(..., do_sample=False)

What cannot be captured runs through `model.generate`: padded batches, prompts with other than one image per row,
anyres and video models, methods with random choices, recording, attention that takes no mask (flash).  Off CUDA the
same static code runs eagerly, which is how it is tested.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llava.constants import IMAGE_TOKEN_INDEX
from visiondrop.layout import Image, Layout, Span

logger = logging.getLogger(__name__)
WARM_UPS = 2
LOOK_EVERY = 8  # decoding steps between two looks at whether every row has ended


class Replay:
    """A function without arguments, captured on CUDA and called elsewhere.

    Attributes:
        captured: whether a graph is replayed.
    """

    def __init__(self, function: Callable[[], Any], device: torch.device, reset: Callable[[], None]):
        self.captured, self._function = False, function
        if device.type != "cuda":
            return
        try:
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    reset()
                    function()
            torch.cuda.current_stream(device).wait_stream(stream)
            reset()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = function()
            self.captured = True
        except RuntimeError as error:
            logger.warning("CUDA graph capture failed, running eagerly: %s", str(error).split("\n")[0])

    def __call__(self) -> Any:
        if not self.captured:
            return self._function()
        self._graph.replay()
        return self._output


class FixedCache:
    """Keys and values of every layer with room for new tokens: [B, H, n_l + room, E]; what a layer needs of a cache.

    Attributes:
        step: [1] long on the device, new tokens so far.
    """

    def __init__(self, prefilled: DynamicCache, room: int):
        first = prefilled.layers[0].keys
        self.lengths = [layer.keys.shape[2] for layer in prefilled.layers]
        self.step = torch.zeros(1, dtype=torch.long, device=first.device)
        self.keys, self.values = (
            [
                x.new_zeros(*x.shape[:2], x.shape[2] + room, x.shape[3])
                for x in (getattr(layer, name) for layer in prefilled.layers)
            ]
            for name in ("keys", "values")
        )

    def load(self, prefilled: DynamicCache) -> None:
        """Begin a new generation behind `prefilled`."""
        for layer, keys, values, length in zip(prefilled.layers, self.keys, self.values, self.lengths, strict=True):
            keys[:, :, :length].copy_(layer.keys)
            values[:, :, :length].copy_(layer.values)
        self.step.zero_()

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put one new token in its place; returns all keys and values, valid or not."""
        at = self.step + self.lengths[layer]
        self.keys[layer].index_copy_(2, at, key)
        self.values[layer].index_copy_(2, at, value)
        return self.keys[layer], self.values[layer]

    def segments(self) -> list[tuple[int, int]]:
        """(first layer, length after the prefill) of every run of layers of equal length."""
        return [(i, n) for i, n in enumerate(self.lengths) if i == 0 or n != self.lengths[i - 1]]


class Static:
    """Buffers, prefill and decoding step for one batch size and one pair of text lengths.

    Attributes:
        before, after: [B, P], [B, A] ids around the image; pixels: [B, 3, H, W]; out: [B, room] new ids.
    """

    def __init__(self, model: nn.Module, before: Tensor, after: Tensor, pixels: Tensor, room: int):
        self.model, self.room, self.shape = model, room, model.visual_shape()
        self.before, self.after, self.pixels = before.clone(), after.clone(), pixels.clone()
        self.out = torch.zeros(len(before), room, dtype=torch.long, device=before.device)
        self.token = torch.zeros(len(before), 1, dtype=torch.long, device=before.device)
        self.prefill = Replay(self._prefill, pixels.device, lambda: None)
        logits, cache = self.prefill()
        self.logical = cache.get_seq_length()
        self.compact = model.pruner is None or model.pruner.compact
        self.cache = FixedCache(cache, room)
        self.cache.load(cache)
        self.decode = Replay(self._decode, pixels.device, self.cache.step.zero_)

    def start(self, before: Tensor, after: Tensor, pixels: Tensor) -> None:
        """Prefill other prompts of the same lengths; the first new token is then in `token` and `out`."""
        for buffer, given in ((self.before, before), (self.after, after), (self.pixels, pixels)):
            buffer.copy_(given)
        logits, cache = self.prefill()
        self.cache.load(cache)
        self.token.copy_(logits[:, -1:].argmax(-1))
        self.out[:, :1] = self.token

    def _prefill(self) -> tuple[Tensor, DynamicCache]:
        model, stack, shape = self.model, self.model.model, self.shape
        tower, pruner = model.get_vision_tower(), model.pruner
        rows, width = len(self.before), self.before.shape[1] + shape.tokens + self.after.shape[1]
        if pruner is not None and pruner.plan_for(shape).encoder is not None:
            features = tower.staged(self.pixels, shape, list(range(rows)), rows)[0]
        else:
            features = tower(self.pixels)
        features = stack.mm_projector(features)
        vacated = features.new_zeros(rows, shape.tokens - features.shape[1], features.shape[2])
        hidden = torch.cat([stack.embed_tokens(self.before), features, vacated, stack.embed_tokens(self.after)], dim=1)
        spans = [Span(row, self.before.shape[1], Image(shape)) for row in range(rows)]
        layout = Layout(spans, [width] * rows, width, None, [[width] for _ in range(rows)])
        cache = DynamicCache(config=model.config)
        output = stack(inputs_embeds=hidden, past_key_values=cache, use_cache=True, layout=layout)
        return model.lm_head(output.last_hidden_state[:, -1:]), cache

    def _decode(self) -> None:
        """One greedy step: `token` -> the next `token`, noted in `out`."""
        stack, step = self.model.model, self.cache.step
        hidden, segments, arguments = stack.embed_tokens(self.token), dict(self.cache.segments()), {}
        for i, layer in enumerate(stack.layers):
            if i in segments:
                arguments = self._arguments(hidden, segments[i])
            hidden = layer(hidden, past_key_values=self.cache, use_cache=True, position_ids=None, **arguments)
        self.token.copy_(self.model.lm_head(stack.norm(hidden)).argmax(-1))
        step.add_(1)
        self.out.index_copy_(1, step, self.token)

    def _arguments(self, hidden: Tensor, length: int) -> dict[str, Any]:
        """Mask and rotary embedding of the layers that held `length` tokens after the prefill."""
        step, stack = self.cache.step, self.model.model
        seen = torch.arange(length + self.room, device=hidden.device) <= step + length
        mask = seen.expand(len(hidden), 1, 1, -1)
        if self.model.config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        position = step + (length if self.compact else self.logical)
        return {"attention_mask": mask, "position_embeddings": stack.rotary_emb(hidden, position_ids=position[None])}


class GraphedGenerator:
    """`generate` through graphs, one set per prompt shape, for a native LLaVA model under whatever method is applied.

    Attributes:
        max_new_tokens: room in the buffers.  reasons: why the last call went through `model.generate`, or "".
    """

    def __init__(self, model: nn.Module, max_new_tokens: int = 32, most_shapes: int = 16):
        self.model, self.max_new_tokens, self.most_shapes, self.reason = model, max_new_tokens, most_shapes, ""
        self._made: dict[tuple, tuple[Any, Static]] = {}

    def static(self, before: Tensor, after: Tensor, pixels: Tensor) -> Static:
        """The buffers and graphs for prompts of these shapes under the method now applied."""
        key = (id(self.model.pruner), before.shape, after.shape, pixels.shape, pixels.dtype)
        if key not in self._made:
            if len(self._made) >= self.most_shapes:
                self._made.pop(next(iter(self._made)))
            # The pruner is held with it: its id stands in the key.
            self._made[key] = self.model.pruner, Static(self.model, before, after, pixels, self.max_new_tokens)
        return self._made[key][1]

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, images: Tensor, attention_mask: Tensor | None = None, max_new_tokens: int | None = None
    ):
        """Greedy: [B, T0] ids with one -200 per row -> [B, new] new ids, as `model.generate(..., do_sample=False)`."""
        wanted = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        self.reason = self._why_not(input_ids, images, attention_mask, wanted)
        if self.reason:
            settings = {"attention_mask": attention_mask, "do_sample": False, "max_new_tokens": wanted}
            return self.model.generate(input_ids, images=images, **settings)
        at = int((input_ids[0] == IMAGE_TOKEN_INDEX).nonzero()[0, 0])
        pixels = (images if isinstance(images, Tensor) else torch.stack(list(images))).to(
            self.model.device, self.model.dtype
        )
        parts = input_ids[:, :at], input_ids[:, at + 1 :], pixels
        static = self.static(*parts)
        static.start(*parts)
        ends = self._end_ids(input_ids.device)
        for step in range(1, wanted):
            if step % LOOK_EVERY == 0 and bool(torch.isin(static.out[:, :step], ends).any(1).all()):
                break
            static.decode()
        return self._cut(static.out[:, :wanted], ends)

    def _why_not(self, ids: Tensor, images: Any, mask: Tensor | None, wanted: int) -> str:
        """Why these prompts cannot run with static shapes; "" where they can."""
        model, pruner = self.model, self.model.pruner
        holes = ids == IMAGE_TOKEN_INDEX
        reasons = {
            "more new tokens than the buffers hold": wanted > self.max_new_tokens,
            "no images": images is None,
            "padding": mask is not None and not bool(mask.all()),
            "one image per row, at the same place, is needed": not bool((holes.sum(1) == 1).all())
            or not bool((holes == holes[:1]).all()),
            "images of several crops": model.visual_shape().units > 1 or model.get_video_tower() is not None,
            "flash attention takes no mask": model.config._attn_implementation not in ("sdpa", "eager"),
            "the method chooses at random": pruner is not None and pruner.plan.seeded,
            "recording": pruner is not None and pruner.record,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _end_ids(self, device: torch.device) -> Tensor:
        ends = self.model.generation_config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        return torch.tensor(ends, dtype=torch.long, device=device)

    def _cut(self, out: Tensor, ends: Tensor) -> Tensor:
        """Padding behind each row's end; columns up to where the last row ends."""
        ended = torch.isin(out, ends).cumsum(1)
        is_end = torch.isin(out, ends) & (ended == 1)
        behind = (ended > 0) & ~is_end
        pad = self.model.generation_config.pad_token_id
        width = int((~behind).sum(1).max())
        return out.masked_fill(behind, 0 if pad is None else pad)[:, :width]
