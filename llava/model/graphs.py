"""`generate` with static shapes: what `visiondrop.apply(model, ..., compile=True)` switches on.

A budget fixes every length, so prefill and decoding step are made once per batch size and length of the prompt and
serve all images and questions: on CUDA as graphs, which spare the host from launching kernels one by one (most of the
time at batch 1); on the CPU with the decoder's layers through torch.compile.  Questions of different lengths share
what was made for the next multiple of `TEXT_STEP`: columns behind a row's last token are seen by nobody and are
written over by the answer.

What has no static shape runs as ever, and a sentence says why: sampling and beams, rows with other than one image or
with images of different layouts, random choices, recording, attention that takes no mask (flash).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava.constants import IMAGE_TOKEN_INDEX
from visiondrop.arrange import Picture
from visiondrop.errors import VisionDropError
from visiondrop.layout import Layout, Span

from .fixed import ROOMS, Decoder, room_for
from .replay import CompiledLayers, Notice, Replay

TEXT_STEP = 8  # lengths of the text behind the image are rounded up to a multiple of it
FIRST_ROOM = 128  # new tokens there is room for at first, where as many are asked for
LOOK_EVERY = 8  # on CUDA, steps between two looks at whether every row has ended, after the first eight
NEUTRAL = {  # settings of `generate` that leave a greedy answer as it is, whatever their value
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "early_stopping", "length_penalty", "use_cache"),
    *("transformers_version", "bos_token_id", "pad_token_id", "eos_token_id", "max_new_tokens", "max_length"),
    *("_from_model_config", "disable_compile"),
}


ONE = dict.fromkeys(("num_beams", "num_return_sequences", "num_beam_groups", "repetition_penalty"), 1)


class NotStatic(Exception):
    """Why a call cannot run with static shapes."""


@dataclass
class Prompts:
    """A batch whose rows have one image or video each, at the same place.

    Attributes:
        before: [B, P] ids; after: [B, A] ids, filled up on the right; spare: [B] long, how many were filled up.
        pictures: one per row, of one shape.
    """

    before: Tensor
    after: Tensor
    spare: Tensor
    pictures: list[Picture]

    @property
    def key(self) -> tuple:
        """Equal for prompts that the same graphs serve."""
        first = self.pictures[0]
        return self.before.shape, self.after.shape, first.shape, first.grid, first.pixels.shape

    @classmethod
    def read(cls, model: nn.Module, ids: Tensor, mask: Tensor | None, images: Any, sizes: Any) -> "Prompts":
        """From the arguments of `generate`.

        Raises:
            NotStatic: the rows do not fit together.
        """
        if images is None:
            raise NotStatic("prompts without images")
        rows = ids.tolist() if mask is None else [r[m.bool()].tolist() for r, m in zip(ids, mask)]
        pictures = model.pictures(images, sizes)
        if len(pictures) != len(rows) or any(p.pixels is None for p in pictures):
            raise NotStatic("a static batch has one image per row")
        if len({(p.shape, p.grid) for p in pictures}) > 1:
            raise NotStatic("images of different layouts")
        places = {_place(row) for row in rows}
        wanted = pictures[0].shape.units if pictures[0].shape.kind == "video" else 1
        if len(places) > 1 or next(iter(places))[1] != wanted:
            raise NotStatic("the images of a static batch stand at the same place of every row")
        start, count = places.pop()
        tails, device = [row[start + count :] for row in rows], model.device
        width, guided = max(map(len, tails)), model.pruner is not None and model.pruner.plan.text_guided
        if min(map(len, tails)) == 0 or (guided and len(set(map(len, tails))) > 1):
            raise NotStatic("a method that reads the question needs questions of equal length, behind the image")
        width = width if guided else -(-width // TEXT_STEP) * TEXT_STEP
        return cls(
            torch.tensor([row[:start] for row in rows], device=device).view(len(rows), start).long(),
            torch.tensor([tail + [0] * (width - len(tail)) for tail in tails], device=device),
            torch.tensor([width - len(tail) for tail in tails], device=device),
            [_on(picture, device, model.dtype) for picture in pictures],
        )


def _place(row: list[int]) -> tuple[int, int]:
    """(first, count) of the placeholders of a row, which stand side by side."""
    count = row.count(IMAGE_TOKEN_INDEX)
    first = row.index(IMAGE_TOKEN_INDEX) if count else 0
    if row[first : first + count] != [IMAGE_TOKEN_INDEX] * count:
        raise NotStatic("a static batch has one image per row")
    return first, count


def _on(picture: Picture, device: torch.device, dtype: torch.dtype) -> Picture:
    ids = None if picture.ids is None else picture.ids.to(device)
    return Picture(picture.shape, picture.pixels.to(device, dtype), picture.grid, ids)


class Static:
    """Buffers, prefill and decoding steps for prompts of one key."""

    def __init__(self, model: nn.Module, prompts: Prompts, room: int, how: dict[str, Any]):
        """how: see `Replay`."""
        self.model, self._how, self._prefill = model, how, None
        self.before, self.after, self.spare = (
            x.clone() for x in (prompts.before, prompts.after, prompts.spare)
        )
        first = prompts.pictures[0]
        self.pixels = torch.stack([p.pixels for p in prompts.pictures])
        self.pictures = [Picture(first.shape, pixels, first.grid, first.ids) for pixels in self.pixels]
        self.block = model.account(first).block
        text = self.before.shape[1] + self.after.shape[1]
        visual = [self.block] * first.shape.layers if model.pruner is None else self._lengths(first)
        lengths, logical = [n + text for n in visual], self.block + text
        self.decoder = Decoder(model, lengths, logical, len(self.before), room, **how)

    def _lengths(self, picture: Picture) -> list[int]:
        return self.model.pruner.plan_for(picture.shape).tokens_per_layer()

    @property
    def captured(self) -> bool:
        """Whether the prefill is replayed from a graph, and every kind of step so far."""
        return self._prefill is not None and self._prefill.captured and self.decoder.captured

    def start(self, prompts: Prompts) -> None:
        """Prefill prompts of the same key; the first new tokens are then in `decoder.token` and `decoder.out`."""
        for buffer, given in ((self.before, prompts.before), (self.after, prompts.after), (self.spare, prompts.spare)):
            buffer.copy_(given)
        for buffer, picture in zip(self.pixels, prompts.pictures, strict=True):
            buffer.copy_(picture.pixels)
        if self._prefill is None:
            self._prefill = Replay(self._run, self.pixels.device, **self._how)
        self._prefill()

    def reserve(self, room: int) -> None:
        """Have room for so many new tokens."""
        if self.decoder.reserve(room):
            self._prefill = None  # it writes into buffers that are gone

    def decode(self, number: int) -> None:
        """New token `number`; see `Decoder.decode`."""
        if self.decoder.decode(number):
            self._prefill = None

    def _run(self) -> None:
        """Tower, stages, decoder, head on each row's last token."""
        model, decoder, (rows, start) = self.model, self.decoder, self.before.shape
        stack, width = model.model, decoder.logical
        embeds, accounts = model.encode_pictures(self.pictures)
        features = torch.stack(embeds)
        vacated = features.new_zeros(rows, self.block - features.shape[1], features.shape[2])
        hidden = torch.cat([stack.embed_tokens(self.before), features, vacated, stack.embed_tokens(self.after)], dim=1)
        spans = [Span(row, start, account) for row, account in enumerate(accounts)]
        layout = Layout(spans, [width] * rows, width, None, [[width] for _ in range(rows)])
        cache = decoder.cache.empty(model.config)
        states = stack(inputs_embeds=hidden, past_key_values=cache, use_cache=True, layout=layout).last_hidden_state
        decoder.cache.spare.copy_(self.spare)
        last = (self.after.shape[1] - 1 - self.spare).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        decoder.first(states[:, -self.after.shape[1] :].gather(1, last))


class StaticGenerator:
    """`generate` with static shapes for a native LLaVA model, under the method applied when it was made.

    Attributes:
        calls: how many ran with static shapes, how many did not: {"static": n, "eager": n}.
        notice: what was said about running eagerly.
    """

    def __init__(self, model: nn.Module, compiler: str | None = "inductor", most_shapes: int = 16):
        """Args:
        compiler: torch.compile's backend on the CPU; None = the static code runs eagerly there.
        most_shapes: sets of buffers and graphs held at once; the oldest leaves first.
        """
        self.model, self.most_shapes, self.notice = model, most_shapes, Notice()
        self.calls = {"static": 0, "eager": 0}
        self._made: dict[tuple, Static] = {}
        cuda = model.device.type == "cuda"
        layers = CompiledLayers(model.model.layers, self.notice, compiler) if compiler and not cuda else None
        pool = torch.cuda.graph_pool_handle() if cuda else None
        self._how = {"layers": layers, "pool": pool, "notice": self.notice}

    @property
    def failed(self) -> bool:
        """Whether a capture or a compilation failed."""
        layers, made = self._how["layers"], self._made.values()
        if layers is not None:
            return layers.failed
        return self.model.device.type == "cuda" and any(not static.captured for static in made)

    def static(self, prompts: Prompts, room: int = ROOMS[0]) -> Static:
        """The buffers and graphs for prompts of this key."""
        if prompts.key not in self._made:
            if len(self._made) >= self.most_shapes:
                self._made.pop(next(iter(self._made)))
            self._made[prompts.key] = Static(self.model, prompts, room, self._how)
        return self._made[prompts.key]

    def generate(self, input_ids: Tensor, images: Any, image_sizes: Any = None, **settings: Any) -> Tensor | None:
        """As `model.generate`: [B, new] new ids, or None where the call has no static shape."""
        try:
            limit, ends, pad = self._settings(settings)
            with torch.inference_mode():
                prompts = Prompts.read(self.model, input_ids, settings.get("attention_mask"), images, image_sizes)
                out = self._run(prompts, limit, ends, pad)
        except (NotStatic, VisionDropError) as reason:  # what is wrong with the arguments, `generate` itself will say
            self.calls["eager"] += 1
            if isinstance(reason, NotStatic):
                self.notice("this call has no static shape", reason)
            return None
        self.calls["static"] += 1
        return out.clone()

    def _run(self, prompts: Prompts, limit: int, ends: Tensor, pad: int) -> Tensor:
        static = self.static(prompts, room_for(min(limit, FIRST_ROOM)))
        static.start(prompts)
        often = self.model.device.type != "cuda"
        for number in range(1, limit):
            look = len(ends) and (often or number <= LOOK_EVERY or number % LOOK_EVERY == 0)
            if look and bool(torch.isin(static.decoder.out[:, :number], ends).any(1).all()):
                break
            static.decode(number)
        return _cut(static.decoder.out[:, :limit], ends, pad, number_of=limit)

    def _settings(self, given: dict[str, Any]) -> tuple[int, Tensor, int]:
        """(most new tokens, ids that end an answer, id that stands behind them).

        Raises:
            NotStatic: settings ask for more than greedy search.
        """
        model = self.model
        config = given.get("generation_config") or model.generation_config
        asked = {k: v for k, v in config.to_diff_dict().items() if v is not None}
        asked |= {k: v for k, v in given.items() if k not in ("attention_mask", "generation_config") and v is not None}
        strange = sorted(k for k, v in asked.items() if k not in NEUTRAL and v is not False and ONE.get(k) != v)
        pruner, attention = model.pruner, model.config._attn_implementation
        reasons = {
            f"{', '.join(strange)}": bool(strange),
            "no max_new_tokens": not 0 < asked.get("max_new_tokens", 0) <= ROOMS[-1],
            "use_cache=False": asked.get("use_cache") is False,
            "layers on several devices": hasattr(model.model.layers[0], "_hf_hook"),
            f"attention {attention!r} takes no mask": attention not in ("sdpa", "eager"),
            "the method chooses at random": pruner is not None and pruner.plan.seeded,
            "what is kept is recorded": pruner is not None and pruner.record,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is not None:
            raise NotStatic(reason)
        ends = asked.get("eos_token_id", [])
        ends = torch.as_tensor([ends] if isinstance(ends, int) else ends, dtype=torch.long, device=model.device)
        pad = asked.get("pad_token_id", int(ends[0]) if len(ends) else 0)
        return asked["max_new_tokens"], ends, pad


def _cut(out: Tensor, ends: Tensor, pad: int, number_of: int) -> Tensor:
    """Padding behind each row's end; columns up to where the last row ends."""
    is_end = torch.isin(out, ends)
    behind = is_end.cumsum(1) - is_end.long() > 0
    width = min(number_of, int((~behind).sum(1).max()))
    return out.masked_fill(behind, pad)[:, :width]
