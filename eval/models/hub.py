"""Any model of transformers under lmms-eval's own wrapper: its prompts and settings untouched, pruning and our answers added.

The wrapper is lmms-eval's class for the family (`--wrapper`, by default the one of the model's type).  It is built as lmms-eval
builds it, then the method is applied to its model; its `generate_until` is called for a few questions at a time, and every
answer is stored.  With method none the requests to the model are those of the bare wrapper, bit for bit.
"""

import inspect
from contextlib import redirect_stderr
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from torch import Tensor
from tqdm import tqdm
from transformers.utils import is_torchvision_available

import visiondrop
from eval.errors import EvaluationError
from eval.models import lengths
from eval.models.qwen_pictures import process_vision_info
from eval.models.reuse import LIMIT_BYTES
from eval.results.answers import AnswerStore, question_key
from eval.settings import ModelSettings
from visiondrop.errors import VisionDropError, first_line
from visiondrop.families import adapter_for
from visiondrop.families.processors import load_processor
from visiondrop.plans.plan import Ledger
from visiondrop.pruner import current_pruner
from visiondrop.reuse.prefix import continue_prefix, encode_prefix, refuse_text_guided
from visiondrop.reuse.recent import fingerprint
from visiondrop.reuse.store import PrefixStore

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
AT_ONCE = 4  # batches between two visits to the disk
PROCESSOR = ("size", "min_pixels", "max_pixels", "patch_size", "merge_size", "crop_size", "crop_to_patches")


class Watched:
    """The model a wrapper calls: it remembers what `generate` raised, since some wrappers turn every error into an empty
    answer, and with `prefixes` it computes a picture once for all questions about it.
    """

    def __init__(self, model: torch.nn.Module, ledger: Ledger, prefixes: PrefixStore | None = None):
        self.inner, self.ledger, self.prefixes, self.error = model, ledger, prefixes, None
        self._unchecked = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def generate(self, **inputs: Any) -> Tensor:
        """[B, T + new] ids, as the model's."""
        try:
            ids = inputs["input_ids"]
            if self._unchecked and "pixel_values" in inputs:
                return self._checked(ids, inputs)
            if self.prefixes is None or len(ids) != 1 or "pixel_values" not in inputs:
                return self.inner.generate(**inputs)
            return self._continued(ids, inputs)
        except Exception as error:
            self.error = error
            raise

    def _checked(self, ids: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The first answer: some layer must get fewer tokens than the prompt has, where the ledger says so."""
        self._unchecked = False
        with lengths.Lengths(adapter_for(self.inner).stack.layers).watching() as found:
            new = self.inner.generate(**inputs)
        lengths.check_fewer(found.seen, ids.shape[1], self.ledger.mean, self.ledger.plan.shape.nominal)
        return new

    def _continued(self, ids: Tensor, inputs: dict[str, Any]) -> Tensor:
        """After the cache of the prompt up to its last picture, from the store where it is there."""
        end = int((ids[0] == self.inner.config.image_token_id).nonzero()[-1]) + 1
        tensors = {
            k: v for k, v in inputs.items() if isinstance(v, Tensor) and k not in ("input_ids", "attention_mask")
        }
        settings = {k: v for k, v in inputs.items() if not isinstance(v, Tensor) and k != "use_cache"}
        before = {k: v[:, :end] if v.shape == ids.shape else v for k, v in tensors.items()}  # kinds of tokens
        key = fingerprint(ids[:, :end], *before.values())
        prefix = self.prefixes.get(key)
        if prefix is None:
            prefix = self.prefixes.put(key, encode_prefix(self.inner, ids[:, :end], **before))
        new = continue_prefix(self.inner, prefix, [ids[0, end:].tolist()], **settings)
        return torch.cat([ids, new], dim=1)


class Processors:
    """`AutoProcessor` where torchvision is missing: pictures need none."""

    from_pretrained = staticmethod(load_processor)


STAND_INS = {"AutoProcessor": Processors, "process_vision_info": process_vision_info}


class HubVisionDrop:
    """What is common to our classes; `hub_class` puts it in front of a wrapper's class.

    Attributes:
        settings: what it was made from; wrapper: lmms-eval's name of the wrapper.
        ledger: of an ordinary picture under the plan in force.
        compiled: how answers are generated: off, or eager where static shapes were asked for.
        store: where answers are kept, or None; reused: answers that were taken from it.
    """

    wrapper = ""
    unlike_uniform = None  # of a row: tokens of hub models lie on grids of any size

    def __init__(self, settings: ModelSettings, answers: Path | None = None):
        """Build the wrapper and apply the method.

        Args:
            answers: folder for the answers; None keeps them in memory only.
        """
        self.settings = settings = settings.placed()
        try:
            self._build()
            self.model.to(DTYPES[settings.dtype])
            handle = visiondrop.apply(
                self.model, settings.method, settings.budget, compile=settings.compile == "on", options=settings.options
            )
            if settings.reuse == "on":
                refuse_text_guided(current_pruner(self.model))
        except VisionDropError as error:
            raise EvaluationError(str(error), "batch") from error
        if self.rank == 0:
            print(handle.ledger, flush=True)  # a picture's size is known to the loaded model only
        self.ledger, self.compiled = handle.ledger, "eager" if settings.compile == "on" else "off"
        self._watched = Watched(self.model, handle.ledger, PrefixStore(LIMIT_BYTES) if settings.reuse == "on" else None)
        self.store = AnswerStore(answers, self.rank) if answers else None
        self.reused = 0

    def _build(self) -> None:
        """The wrapper's own constructor, with those of its arguments that are settings of ours."""
        settings = self.settings
        told = {"pretrained": settings.model, "batch_size": settings.batch_size, "dtype": settings.dtype}
        told |= {"device": "cuda" if settings.device == "auto" else settings.device, "device_map": settings.device}
        told |= {"attn_implementation": settings.attention}
        build = lent(super().__init__.__func__)
        known = inspect.signature(build).parameters
        build(self, **{name: value for name, value in told.items() if name in known})

    @property
    def model(self) -> Any:
        """The wrapper's model, watched once it is pruned."""
        watched = self.__dict__.get("_watched")
        return super().model if watched is None else watched

    @property
    def processor_facts(self) -> dict[str, Any]:
        """What the processor makes of a picture's size."""
        processor = getattr(self, "processor", None) or self._image_processor
        found = getattr(processor, "image_processor", processor).to_dict()
        return {name: found[name] for name in PROCESSOR if found.get(name) is not None}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers to all requests in their order; stored ones are reused, new ones stored after every few batches."""
        keys = [self._key(request) for request in requests]
        by_key = dict(zip(keys, requests))
        answers = {key: self.store.get(key) for key in by_key} if self.store is not None else dict.fromkeys(by_key)
        waiting = [key for key, answer in answers.items() if answer is None]
        self.reused, step = len(by_key) - len(waiting), AT_ONCE * self.settings.batch_size
        with tqdm(total=len(by_key), initial=self.reused, disable=self.rank != 0, desc="questions", unit="q") as bar:
            for start in range(0, len(waiting), step):
                part = waiting[start : start + step]
                texts = self._answer([by_key[key] for key in part])
                if self.store is not None:
                    self.store.add([(key, by_key[key].args[3], text) for key, text in zip(part, texts, strict=True)])
                answers.update(zip(part, texts, strict=True))
                bar.update(len(part))
        return [answers[key] for key in keys]

    def _answer(self, requests: list[Instance]) -> list[str]:
        """The wrapper's own answers; its progress bars go nowhere."""
        generate = lent(super().generate_until.__func__)
        with open("/dev/null", "w") as nowhere, redirect_stderr(nowhere):
            found = generate(self, requests)
        if self._watched.error is not None:
            raise self._watched.error
        return [answer if isinstance(answer, str) else answer.text for answer in found]

    def _key(self, request: Instance) -> str:
        """Before the wrapper sees the request: some write into its settings."""
        prompt, *two, doc_id, task, split = request.args
        settings = two[0] if self.is_simple else two[1]
        return question_key(doc_id, prompt, {**settings, "task": task, "split": split})


def lent(function: FunctionType) -> FunctionType:
    """A wrapper's function that runs without torchvision: a copy that sees our stand-ins; the wrapper's own stays as it is."""
    own, code = function.__globals__, function.__code__
    given = {name: value for name, value in STAND_INS.items() if name in own}
    if is_torchvision_available() or not given:
        return function
    made = FunctionType(code, {**own, **given}, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def hub_class(wrapper: str) -> type:
    """Our class on lmms-eval's wrapper of that name.

    Raises:
        EvaluationError: there is no such wrapper, or it cannot be imported here.
    """
    try:
        base = get_model(wrapper)
    except (ImportError, ValueError) as error:
        raise EvaluationError(
            f"--wrapper {wrapper} cannot be had from lmms-eval ({first_line(error)}); run python -m visiondrop doctor, or name "
            "another wrapper",
            "batch",
        ) from None
    return type(f"{base.__name__}VisionDrop", (HubVisionDrop, base), {"wrapper": wrapper})
