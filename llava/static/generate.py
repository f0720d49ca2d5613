"""`generate` with static shapes: what `visiondrop.apply(model, ..., compile=True)` switches on.

A budget fixes every length, so prefill and decoding step are made once per batch size and length of the prompt and
serve all images and questions: on CUDA as graphs, which spare the host from launching kernels one by one (most of the
time at batch 1); on the CPU with the decoder's layers through torch.compile.  Questions of different lengths share
what was made for the next multiple of `TEXT_STEP`: columns behind a row's last token are seen by nobody and are
written over by the answer.

Requests without a static shape fall back to normal execution, and a warning says why: sampling and beams, rows with other than one image or
with images of different layouts, random choices, recording, attention that takes no mask (flash).
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava.constants import IMAGE_TOKEN_INDEX
from visiondrop.compat import CACHE
from visiondrop.errors import VisionDropError
from visiondrop.reuse.prefix import Prefix
from visiondrop.stack.layout import Layout, Span
from visiondrop.tower.units import Picture

from .decode import ROOMS, Decoder, room_for
from .replay import CompiledLayers, Notice, Replay

TEXT_STEP = 8  # lengths of the text after the image are rounded up to a multiple of it
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
        guided = model.pruner is not None and model.pruner.plan.text_guided
        if guided and len(set(map(len, tails))) > 1:
            raise NotStatic("a method that reads the question needs questions of equal length")
        return cls(
            torch.tensor([row[:start] for row in rows], device=device).view(len(rows), start).long(),
            *fill_up(tails, 1 if guided else TEXT_STEP, device),
            [_on(picture, device, model.dtype) for picture in pictures],
        )


def fill_up(rows: Sequence[Sequence[int]], step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """([B, A] ids filled up on the right, A a multiple of `step`; [B] long, by how many)."""
    if min(map(len, rows), default=0) == 0:
        raise NotStatic("no text behind the image")
    width = -(-max(map(len, rows)) // step) * step
    spare = [width - len(row) for row in rows]
    ids = torch.tensor([[*row, *[0] * more] for row, more in zip(rows, spare)], device=device)
    return ids, torch.tensor(spare, device=device)


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
    """A first pass and decoding steps, of shapes that never change.

    Attributes:
        after: [B, A] ids of the text that ends the prompts, filled up on the right; spare: [B] long, by how many.
    """

    def __init__(
        self, model: nn.Module, after: Tensor, lengths: list[int], logical: int, room: int, how: dict[str, Any]
    ):
        """Args:
        lengths: columns in every layer before `after`; logical: in unpruned length.
        how: see `Replay`.
        """
        rows, width = after.shape
        self.model, self.how, self._first = model, how, None
        self.after, self.spare = after.clone(), torch.zeros(rows, dtype=torch.long, device=model.device)
        self.decoder = Decoder(model, [n + width for n in lengths], logical + width, rows, room, **how)

    def first(self, after: Tensor, spare: Tensor) -> None:
        """The first new tokens of other prompts; they are then in `decoder.token` and `decoder.out`."""
        self.after.copy_(after)
        self.spare.copy_(spare)
        if self._first is None:
            self._first = Replay(self._run, self.model.device, **self.how)
        self._first()

    def reserve(self, room: int) -> None:
        """Have room for so many new tokens."""
        if self.decoder.reserve(room):
            self._first = None  # it writes into buffers that are gone

    def decode(self, number: int) -> None:
        """New token `number`; see `Decoder.decode`."""
        if self.decoder.decode(number):
            self._first = None

    def _run(self) -> None:
        raise NotImplementedError

    def _finish(self, states: Tensor) -> None:
        """The head on each row's last token; states [B, at least A, D]."""
        self.decoder.cache.spare.copy_(self.spare)
        last = (self.after.shape[1] - 1 - self.spare).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        self.decoder.first(states[:, -self.after.shape[1] :].gather(1, last))


class StaticPrompts(Static):
    """Whole prompts: tower, stages, prefill."""

    def __init__(self, model: nn.Module, prompts: Prompts, room: int, how: dict[str, Any]):
        shape, self.before = prompts.pictures[0].shape, prompts.before.clone()
        self.block, pruner = model.account(prompts.pictures[0]).block, model.pruner
        visual = [self.block] * shape.layers if pruner is None else pruner.plan_for(shape).tokens_per_layer()
        start = self.before.shape[1]
        super().__init__(model, prompts.after, [n + start for n in visual], self.block + start, room, how)
        first = prompts.pictures[0]
        self.pixels = torch.stack([p.pixels for p in prompts.pictures])
        self.pictures = [Picture(shape, pixels, first.grid, first.ids) for pixels in self.pixels]

    def start(self, prompts: Prompts) -> None:
        """Prefill prompts of the same key."""
        self.before.copy_(prompts.before)
        for buffer, picture in zip(self.pixels, prompts.pictures, strict=True):
            buffer.copy_(picture.pixels)
        self.first(prompts.after, prompts.spare)

    def _run(self) -> None:
        model, decoder, (rows, start) = self.model, self.decoder, self.before.shape
        stack, width = model.model, decoder.logical
        embeds, accounts = model.encode_pictures(self.pictures)
        features = torch.stack(embeds)
        vacated = features.new_zeros(rows, self.block - features.shape[1], features.shape[2])
        hidden = torch.cat([stack.embed_tokens(self.before), features, vacated, stack.embed_tokens(self.after)], dim=1)
        spans = [Span(row, start, account) for row, account in enumerate(accounts)]
        layout = Layout(spans, [width] * rows, width, None, [[width] for _ in range(rows)])
        cache = decoder.cache.empty(model.config)
        output = stack(inputs_embeds=hidden, use_cache=True, layout=layout, **{CACHE: cache})
        self._finish(output.last_hidden_state)


class StaticQuestions(Static):
    """Questions behind a prefix (`visiondrop.reuse.session`), whose keys and values are copied in when it changes."""

    def __init__(self, model: nn.Module, prefix: Prefix, after: Tensor, room: int, how: dict[str, Any]):
        lengths = [layer.keys.shape[2] for layer in prefix.cache.layers]
        super().__init__(model, after, lengths, prefix.length, room, how)
        self._loaded: Callable[[], Prefix | None] = lambda: None

    def start(self, prefix: Prefix, after: Tensor, spare: Tensor) -> None:
        """Ask other questions of the same key."""
        if self._loaded() is not prefix:
            self.decoder.cache.load(prefix.cache)
            self._loaded = weakref.ref(prefix)  # how long prefixes are held is for their store to say
        self.first(after, spare)

    def _run(self) -> None:
        self._finish(self.decoder.read(self.after))


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
        self.how = {"layers": layers, "pool": pool, "notice": self.notice}

    @property
    def failed(self) -> bool:
        """Whether a capture or a compilation failed."""
        return self.notice.failed

    @property
    def outcome(self) -> str:
        """What became of it so far: "on", or "partly" or "eager" where some or all calls had no static shape."""
        if self.failed:
            return "eager"
        static, eager = self.calls["static"], self.calls["eager"]
        return "on" if not eager else "partly" if static else "eager"

    def generate(self, input_ids: Tensor, images: Any, image_sizes: Any = None, **settings: Any) -> Tensor | None:
        """As `model.generate`: [B, new] new ids, or None for a call without a static shape."""

        def begin(room: int) -> Static:
            prompts = Prompts.read(self.model, input_ids, settings.get("attention_mask"), images, image_sizes)
            static = self.held(prompts.key, lambda: StaticPrompts(self.model, prompts, room, self.how))
            static.start(prompts)
            return static

        return self._answer(begin, settings)

    def behind(self, prefix: Prefix, rows: Sequence[Sequence[int]], **settings: Any) -> Tensor | None:
        """As `visiondrop.reuse.session.continue_prefix`: [B, new] new ids, or None for a call without a static shape."""

        def begin(room: int) -> Static:
            after, spare = fill_up(rows, TEXT_STEP, self.model.device)
            lengths = tuple(layer.keys.shape[2] for layer in prefix.cache.layers)
            key = "behind", after.shape, lengths, prefix.length
            static = self.held(key, lambda: StaticQuestions(self.model, prefix, after, room, self.how))
            static.start(prefix, after, spare)
            return static

        return self._answer(begin, settings)

    def held(self, key: tuple, make: Callable[[], Static]) -> Static:
        """The buffers and graphs of this key, made where there are none; the oldest leave when there are too many."""
        if key not in self._made:
            if len(self._made) >= self.most_shapes:
                self._made.pop(next(iter(self._made)))
            self._made[key] = make()
        return self._made[key]

    def _answer(self, begin: Callable[[int], Static], settings: dict[str, Any]) -> Tensor | None:
        """What `begin(room)` has started, to its end."""
        try:
            limit, ends, pad = self._settings(settings)
            with torch.inference_mode():
                static = begin(room_for(min(limit, FIRST_ROOM)))
                out = self._steps(static, limit, ends, pad)
        except (NotStatic, VisionDropError) as reason:  # what is wrong with the arguments, `generate` itself will say
            self.calls["eager"] += 1
            if isinstance(reason, NotStatic):
                self.notice("this call has no static shape", reason)
            return None
        self.calls["static"] += 1
        return out.clone()

    def _steps(self, static: Static, limit: int, ends: Tensor, pad: int) -> Tensor:
        """Greedy steps until every row has ended or has `limit` new tokens: [B, new]."""
        often = self.model.device.type != "cuda"
        for number in range(1, limit):
            look = len(ends) and (often or number <= LOOK_EVERY or number % LOOK_EVERY == 0)
            if look and bool(torch.isin(static.decoder.out[:, :number], ends).any(1).all()):
                break
            static.decode(number)
        return _cut(static.decoder.out[:, :limit], ends, pad)

    def _settings(self, given: dict[str, Any]) -> tuple[int, Tensor, int]:
        """(most new tokens, ids that end an answer, id that stands after them).

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
            "another budget for this call": pruner is not None and pruner.borrowed,
            "the tower's lengths depend on the picture": pruner is not None and pruner.plan.adaptive,
            "how many tokens enter depends on the picture": pruner is not None and pruner.plan.packed,
            "the encoder stage reads the question": pruner is not None and pruner.plan.question is not None,
            "what is kept is recorded": pruner is not None and pruner.record,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is not None:
            raise NotStatic(reason)
        ends = asked.get("eos_token_id", [])
        ends = torch.as_tensor([ends] if isinstance(ends, int) else ends, dtype=torch.long, device=model.device)
        pad = asked.get("pad_token_id", int(ends[0]) if len(ends) else 0)
        return asked["max_new_tokens"], ends, pad


def _cut(out: Tensor, ends: Tensor, pad: int) -> Tensor:
    """Padding after each row's end; columns up to where the last row ends."""
    is_end = torch.isin(out, ends)
    behind = is_end.cumsum(1) - is_end.long() > 0
    return out.masked_fill(behind, pad)[:, : int((~behind).sum(1).max())]
