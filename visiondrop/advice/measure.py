"""One sample under one setting: the unpruned answer, and what a pruned model thinks of each of its tokens."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..api import Handle
from ..compat import CACHE, Model
from ..families.guards import PLACEHOLDER_ID as PLACEHOLDER
from ..pruner import current_pruner
from .samples import Sample
from .settings import NONE, Setting

STEPS = 8  # new tokens over which the time of one is taken


def prepare(loaded: Any, sample: Sample) -> dict[str, Any]:
    """Arguments of `generate`: of our classes through their loader, of transformers' through the processor.

    Several pictures stand side by side before the question.
    """
    pictures = sample.open()
    inputs = loaded.inputs(pictures[0], sample.question)
    if len(pictures) == 1:
        return inputs
    if hasattr(loaded, "processor"):
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": sample.question}]
        processor = loaded.processor
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        made, model = dict(processor(images=pictures, text=[text], return_tensors="pt")), loaded.model
        return {
            k: v.to(model.device, model.dtype) if v.is_floating_point() else v.to(model.device) for k, v in made.items()
        }
    each = [loaded.inputs(picture, sample.question) for picture in pictures]
    ids = inputs["input_ids"][0]
    at = int((ids == PLACEHOLDER).nonzero()[0])
    more = ids[at : at + 1].expand(len(pictures) - 1)
    return {
        "input_ids": torch.cat([ids[:at], more, ids[at:]])[None],
        "images": [image for one in each for image in one["images"]],
        "image_sizes": [size for one in each for size in one["image_sizes"]],
    }


@dataclass(frozen=True)
class Reference:
    """The unpruned greedy answer of one sample, held while its settings are measured.

    Attributes:
        ids: [A] new ids, the end token included where it was reached; counted: tokens that numbers are taken over.
        logs: [A, V] float32 log-probabilities of the unpruned model.
        end: where the prompt ends, in unpruned length; text: the answer.
    """

    ids: Tensor
    counted: int
    logs: Tensor
    end: int
    text: str


def reference(handle: Handle, loaded: Any, inputs: dict[str, Any], length: int) -> Reference:
    """Answer without pruning, once, and read the answer back."""
    with handle.pause():
        ids = loaded.generate(inputs, do_sample=False, max_new_tokens=length)[0]
        logits, total = forced(handle.model, inputs, ids)
    ended = len(ids) > 1 and int(ids[-1]) in _ends(loaded.model)
    return Reference(ids, len(ids) - int(ended), logits.float().log_softmax(-1), total - len(ids) + 1, loaded.text(ids))


def _ends(model: Model) -> list[int]:
    ends = model.generation_config.eos_token_id
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


@torch.no_grad()
def forced(model: Model, inputs: Mapping[str, Any], ids: Tensor, end: int | None = None) -> tuple[Tensor, int]:
    """([A, V] logits of each token of an answer that is given to the model in one pass, logical length of the pass).

    Args:
        inputs: of one prompt; ids: [A] the answer; end: where the prompt ends, for scores that read the question.
            Or inputs of B prompts of one length with ids [B, A]: then the logits are [B, A, V].
    """
    tail = ids[..., :-1].view(len(inputs["input_ids"]), -1).to(inputs["input_ids"].device)
    given = dict(inputs)
    given["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
    for name, value in inputs.items():  # attention_mask, mm_token_type_ids and the like go along with the ids
        if name != "input_ids" and isinstance(value, Tensor) and value.shape == inputs["input_ids"].shape:
            new = torch.ones_like(tail) if name == "attention_mask" else torch.zeros_like(tail)
            given[name] = torch.cat([value, new.to(value.dtype)], dim=1)
    pruner = current_pruner(model)
    with nullcontext() if end is None or pruner is None else pruner.frozen_prompt([[end]] * len(tail)):
        output = model(**given, use_cache=True, logits_to_keep=ids.shape[-1])
    logits = output.logits[:, -ids.shape[-1] :]
    return logits if ids.ndim == 2 else logits[0], output[CACHE].get_seq_length()


def compare(held: Reference, logits: Tensor) -> dict[str, Any]:
    """What one setting makes of one sample: counted tokens, those with the same first choice, KL in nats (summed), and
    whether greedy decoding would write the same answer.

    Greedy decoding follows the forced answer for as long as every first choice is the same, so nothing is generated.
    """
    logs, n = logits.float().log_softmax(-1), held.counted
    same = logs.argmax(-1) == held.logs.argmax(-1)
    kl = (held.logs.exp() * (held.logs - logs)).nan_to_num(0.0).sum(-1).clamp(min=0)
    return {
        "tokens": n,
        "same": int(same[:n].sum()),
        "kl": float(kl[:n].double().sum()),
        "answer": bool((logs.argmax(-1) == held.ids.to(logs.device)).all()),
    }


def under(handle: Handle, setting: Setting) -> Any:
    """The block in which a setting holds."""
    return handle.pause() if setting == NONE else handle.using(setting.method, setting.tokens)


@torch.no_grad()
def clock(handle: Handle, loaded: Any, inputs: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """Seconds to the first token (encoding included) and per further token, bytes of the cache, peak bytes on a GPU."""
    model, steps = loaded.model, STEPS
    on_gpu = torch.cuda.is_available() and model.device.type == "cuda"

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    with under(handle, setting):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = now()
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        first = now() - start
        layers = output[CACHE].layers
        held = sum(x.numel() * x.element_size() for layer in layers for x in (layer.keys, layer.values))
        start = now()
        loaded.generate(inputs, do_sample=False, max_new_tokens=steps, min_new_tokens=steps)
        later = max(0.0, now() - start - first) / (steps - 1)
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    return {"first": first, "later": later, "cache": held, "peak": peak}
