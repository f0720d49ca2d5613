"""One image, many questions: the pruned cache of (system prompt + image) is computed once and continued by each.

Visual-only scores never see what stands behind the image, so the kept tokens and their keys and values are the same
for every question; continuing them is exact.  Text-guided methods choose by the question and are refused.

    session = visiondrop.encode(model, image, tokenizer=tokenizer, image_processor=processor, tokens=64)
    answers = session.ask(["What is on the table?", "How many cups are there?"], max_new_tokens=16)

Below text and pictures there is a layer of ids and pixels, for evaluation and for other templates:

    store = PrefixStore(limit_bytes=2 << 30)                          # least recently used prefixes leave first
    prefix = store.get(key) or store.put(key, encode_prefix(model, input_ids=ids, images=pixels))
    new_ids = continue_prefix(model, prefix, rows, max_new_tokens=16) # rows: ids behind the image, one list a question
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin

from .api import apply
from .cache import PrunedCache
from .errors import UnsupportedError, VisionDropError
from .prefix_store import PrefixStore, fingerprint

PROMPT = (  # LLaVA-1.5's conversation "vicuna_v1"
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. USER: <image>\n{question} ASSISTANT:"
)
PLACEHOLDER = -200  # an image in the ids of our llava classes
FILLER = 0  # stands for visual tokens in ids that are in the cache already


@dataclass(frozen=True)
class Prefix:
    """The cache of a prompt up to and including its last image, for one row.

    Attributes:
        cache: after the prefill; never handed out, only copies that share its tensors.
        ids: [1, length] in unpruned length.
        owner: the pruner it was made by (None: nothing was applied).
    """

    cache: DynamicCache
    ids: Tensor
    owner: Any

    @property
    def length(self) -> int:
        """Tokens in unpruned length."""
        return self.ids.shape[1]

    @property
    def bytes(self) -> int:
        """Size of its keys and values."""
        return sum(x.numel() * x.element_size() for layer in self.cache.layers for x in (layer.keys, layer.values))

    def rows(self, count: int) -> DynamicCache:
        """A cache of `count` equal rows.  Keys and values are not copied until the first token is appended to them."""
        out = copy.copy(self.cache)
        out.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in out.layers:
            layer.keys, layer.values = (x.expand(count, -1, -1, -1) for x in (layer.keys, layer.values))
        if isinstance(out, PrunedCache):
            out.segments = [replace(segment) for segment in out.segments]
        return out


def current_pruner(model: nn.Module):
    """The pruner of the method applied to `model`, or None."""
    handle = model.__dict__.get("_visiondrop_handle")
    return None if handle is None else handle._pruner


def refuse_text_guided(pruner) -> None:
    """Raise for a method whose scores read the question."""
    if pruner is not None and pruner.plan.text_guided:
        raise UnsupportedError(
            f"method {pruner.method!r} reads the question when it chooses visual tokens, so an image pruned for one "
            "question does not serve another; prefill every question, or use a visual-only method (visiondrop, "
            "visionzip, vispruner, none)"
        )


@torch.no_grad()
def encode_prefix(model: nn.Module, input_ids: Tensor, **inputs: Any) -> Prefix:
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
    return Prefix(cache, ids, pruner)


def prefill(model: nn.Module, input_ids: Tensor, **inputs: Any) -> tuple[DynamicCache, Tensor]:
    """A new cache of prompts that end with their image, and the ids [1, length] that the first of them stands for.

    Args:
        input_ids: [R, T] as for `encode_prefix`; all rows have the same text and images of one size.
    """
    cache = DynamicCache(config=getattr(model.config, "text_config", model.config))
    model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
    plain = input_ids[0][input_ids[0] != PLACEHOLDER]
    ids = torch.full((1, cache.get_seq_length()), FILLER, dtype=torch.long, device=input_ids.device)
    ids[0, : len(plain)] = plain  # which ids have been seen is what logits processors may ask
    return cache, ids


@torch.no_grad()
def continue_prefix(model: nn.Module, prefix: Prefix, rows: Sequence[Sequence[int]], **settings: Any) -> Tensor:
    """Generate behind a prefix for several questions at once.

    Args:
        rows: ids behind the image, one list per question, of any lengths >= 1.
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
    # The library's own generate: the classes' overrides deal with images, and here is none.
    out = GenerationMixin.generate(model, ids, attention_mask=mask, past_key_values=cache, use_cache=True, **settings)
    return out[:, ids.shape[1] :] if isinstance(out, Tensor) else out.sequences[:, ids.shape[1] :]


@torch.no_grad()
def next_logits(model: nn.Module, prefix: Prefix, rows: Sequence[Sequence[int]]) -> Tensor:
    """[B, V] logits of the token after each question."""
    ids, mask = _lay_out(model, prefix, rows, _pad_id(model))
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, prefix.length :]
    output = model(
        input_ids=ids[:, prefix.length :],
        attention_mask=mask,
        position_ids=positions,
        past_key_values=prefix.rows(len(ids)),
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def _pad_id(model: nn.Module) -> int:
    pad = model.generation_config.pad_token_id
    return FILLER if pad is None else pad


def _lay_out(model: nn.Module, prefix: Prefix, rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids, mask), each [B, prefix + longest]: prefix, padding, question."""
    if prefix.owner is not current_pruner(model):
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


class Session:
    """An encoded image; made by `encode`.

    Attributes:
        prefix: the cache of system prompt and image.
    """

    def __init__(self, model: nn.Module, prefix: Prefix, tokenizer, behind: str):
        self.model, self.prefix, self._tokenizer, self._behind = model, prefix, tokenizer, behind

    @property
    def bytes(self) -> int:
        """Bytes of keys and values the session holds."""
        return self.prefix.bytes

    def ask(
        self,
        questions: Sequence[str | Sequence[int]] | str,
        *,
        max_new_tokens: int = 128,
        batch_size: int | None = None,
        **settings: Any,
    ) -> list[str] | str | list[list[int]]:
        """Answers in the order of the questions (a single string is answered by one).

        Args:
            questions: of any lengths; they are run together, `batch_size` at a time (default: all at once).  Without
                a tokenizer, questions and answers are ids: everything behind the image, and what is generated.
            settings: anything of `generate`; greedy unless told otherwise.
        """
        single = isinstance(questions, str)
        rows = [self._ids(question) for question in ([questions] if single else questions)]
        settings = {"do_sample": False, "max_new_tokens": max_new_tokens, **settings}
        size, answers = max(1, len(rows)) if batch_size is None else batch_size, []
        if size < 1:
            raise VisionDropError(f"batch_size={batch_size}: give a positive number, or leave it out for one batch")
        for start in range(0, len(rows), size):
            new = continue_prefix(self.model, self.prefix, rows[start : start + size], **settings)
            if self._tokenizer is None:
                answers += new.tolist()
            else:
                answers += [text.strip() for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]
        return answers[0] if single else answers

    def logits(self, questions: Sequence[str | Sequence[int]]) -> Tensor:
        """[B, V] logits of the token after each question."""
        return next_logits(self.model, self.prefix, [self._ids(question) for question in questions])

    def _ids(self, question: str | Sequence[int]) -> list[int]:
        if not isinstance(question, str):
            return list(question)
        if self._tokenizer is None:
            raise VisionDropError(
                f"question {question!r}: text needs a tokenizer; encode with tokenizer=, or ask with ids"
            )
        return tokenize(self._tokenizer, self._behind.replace("{question}", question), first=False)


def tokenize(tokenizer, text: str, first: bool) -> list[int]:
    """Ids of one piece of a prompt; only the first keeps the start token (as LLaVA tokenises around images)."""
    ids = tokenizer(text).input_ids
    return ids if first or not ids or ids[0] != tokenizer.bos_token_id else ids[1:]


def encode(
    model: nn.Module,
    image: Any,
    *,
    tokenizer: Any = None,
    image_processor: Any = None,
    prompt: str = PROMPT,
    ids: Sequence[int] | None = None,
    method: str | None = None,
    tokens: int | None = None,
    store: PrefixStore | None = None,
    **options: Any,
) -> Session:
    """Encode one image for many questions.

    Args:
        model: our `llava` classes, or transformers' `LlavaForConditionalGeneration`.
        image: a PIL image, or preprocessed pixels [3, H, W] (or [1, 3, H, W]); Video-LLaVA: also a video's, [3,
            frames, H, W] (`llava.video.load_video`).
        tokenizer, image_processor: the model's; the second is not needed for pixels.
        prompt: text with one `<image>` and, behind it, `{question}`.
        ids: in place of the prompt's text before the image, its ids; then no tokenizer is needed, see `Session.ask`.
        method, tokens, options: applied first, as `visiondrop.apply` does; left out, what is applied stays.
        store: holds the result, and gives it back for the same image, prompt and method.

    Raises:
        UnsupportedError: the method is text-guided.
    """
    _apply_once(model, method, tokens, options)
    before, placeholder, behind = prompt.partition("<image>")
    if not placeholder or "{question}" not in behind or "<image>" in behind:
        raise VisionDropError(f"prompt {prompt!r}: it must hold one <image> and, behind it, {{question}}")
    if ids is None and tokenizer is None:
        raise VisionDropError("encode needs tokenizer= for the prompt's text, or ids= of what stands before the image")
    ids = tokenize(tokenizer, before, first=True) if ids is None else list(ids)
    inputs = _native_inputs if hasattr(model, "visual_shape") else _hub_inputs
    arguments = inputs(model, ids, image, image_processor)
    key = None if store is None else fingerprint(*arguments.values(), id(current_pruner(model)))
    prefix = store.get(key) if store is not None else None
    if prefix is None:
        prefix = encode_prefix(model, **arguments)
        if store is not None:
            store.put(key, prefix)
    return Session(model, prefix, tokenizer, behind)


def _apply_once(model: nn.Module, method: str | None, tokens: int | None, options: dict[str, Any]) -> None:
    """Apply a method unless it is applied already: earlier sessions of the same settings stay good."""
    pruner = current_pruner(model)
    if method is None and tokens is None:
        return refuse_text_guided(pruner)
    wanted = (method or "visiondrop", tokens, options)
    if pruner is not None and (pruner.method, pruner.tokens, pruner.options) == wanted:
        return refuse_text_guided(pruner)
    handle = apply(model, wanted[0], tokens, **options)
    try:
        refuse_text_guided(current_pruner(model))
    except UnsupportedError:
        handle.remove()
        raise


def _native_inputs(model: nn.Module, ids: list[int], image: Any, processor: Any) -> dict[str, Any]:
    """Inputs of our llava classes for `ids` and one image."""
    pixels, size = image, None
    if not isinstance(image, Tensor):
        from llava.mm_utils import open_image, process_images

        processor = processor or model.get_vision_tower().image_processor
        if processor is None:
            raise VisionDropError("encode needs image_processor= for a picture (load_pretrained_model returns it)")
        image = open_image(image)
        pixels, size = process_images([image], processor, model.config), [image.size]
        pixels = pixels if isinstance(pixels, Tensor) else pixels[0]
    pixels = pixels.to(model.device, model.dtype)
    pixels = pixels[None] if pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[0] != 1) else pixels
    shape = model.pictures(pixels, size)[0].shape
    holes = [PLACEHOLDER] * (shape.units if shape.kind == "video" else 1)  # a video has one for every frame
    return {
        "input_ids": torch.tensor([[*ids, *holes]], device=model.device),
        "images": pixels,
        "image_sizes": size,
    }


def _hub_inputs(model: nn.Module, ids: list[int], image: Any, processor: Any) -> dict[str, Any]:
    """Inputs of transformers' `LlavaForConditionalGeneration` for `ids` and one image."""
    from .adapters import adapter_for

    if type(model).__name__ != "LlavaForConditionalGeneration":
        raise UnsupportedError(
            f"encode does not lay out prompts of {type(model).__name__}; use session.encode_prefix with its "
            "processor's inputs"
        )
    if not isinstance(image, Tensor):
        if processor is None:
            raise VisionDropError("encode needs image_processor= for a picture (processor.image_processor)")
        image = processor(images=image, return_tensors="pt")["pixel_values"]
    pixels = image if image.ndim == 4 else image[None]
    visual = [model.config.image_token_id] * adapter_for(model).shape().tokens
    return {
        "input_ids": torch.tensor([ids + visual], device=model.device),
        "pixel_values": pixels.to(model.device, model.dtype),
    }
