"""lmms-eval model class that asks a server of `visiondrop serve` (or any vLLM with the plug-in) over HTTP; answers are stored as ever.

The server's own chat template words the prompts: python -m llava.export_hub writes the checkpoint's conversation there.
"""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

import visiondrop
from eval.errors import EvaluationError
from eval.models.server import fetch
from eval.results import fingerprint
from eval.results.answers import AnswerStore, question_key
from eval.settings import ModelSettings

AT_ONCE = 16  # questions between two visits to the disk
MAX_NEW_TOKENS = 1024  # where a task sets none, as for models that are loaded here


class Served(lmms):
    """A served model under one method and budget, which every request names.

    Attributes:
        settings: what it was made from; ledger: of an ordinary picture.
        store: where answers are kept, or None; reused: answers that were taken from it.
    """

    is_simple = True
    processor_facts, compiled, unlike_uniform = None, "off", None

    def __init__(self, settings: ModelSettings, answers: Path | None = None):
        """answers: folder for the answers; None keeps them in memory only."""
        super().__init__()
        self.settings, self.url = settings.placed(), str(settings.server).rstrip("/")
        self.name = fetch(f"{self.url}/v1/models")["data"][0]["id"]
        checkpoint = fingerprint.checkpoint(settings.model)
        shape = checkpoint.visual_shape(settings.layout)
        if shape is None:
            raise EvaluationError(
                f"{settings.model}: its configuration does not say how large its pictures are", "batch"
            )
        plan = visiondrop.plan(settings.method, settings.budget, shape=shape, options=settings.options)
        self.ledger = plan.ledger(checkpoint.dims)
        self.asked: dict[str, Any] = {"method": settings.method, "options": settings.options}
        if settings.budget is not None and settings.method != "none":
            self.asked["tokens"] = settings.budget
        self.store = AnswerStore(answers, self.rank) if answers else None
        self.reused = 0

    @property
    def device(self) -> str:
        """Where lmms-eval's own tensors go."""
        return "cpu"

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers to all requests in their order, as many at once as --batch-size says."""
        by_key = {self._key(request): request for request in requests}
        answers = {key: self.store.get(key) for key in by_key} if self.store is not None else dict.fromkeys(by_key)
        waiting = [key for key, answer in answers.items() if answer is None]
        self.reused = len(by_key) - len(waiting)
        bar = tqdm(total=len(by_key), initial=self.reused, desc="questions", unit="q")
        with bar, ThreadPoolExecutor(self.settings.batch_size) as pool:
            for start in range(0, len(waiting), AT_ONCE):
                part = waiting[start : start + AT_ONCE]
                bodies = [self._body(by_key[key]) for key in part]
                texts = list(pool.map(self._answer, bodies))
                if self.store is not None:
                    self.store.add([(key, by_key[key].args[3], text) for key, text in zip(part, texts, strict=True)])
                answers.update(zip(part, texts, strict=True))
                bar.update(len(part))
        return [answers[self._key(request)] for request in requests]

    @staticmethod
    def _key(request: Instance) -> str:
        prompt, settings, _, doc_id, task, split = request.args
        return question_key(doc_id, prompt, {**settings, "task": task, "split": split})

    def _body(self, request: Instance) -> dict[str, Any]:
        """A chat completion: the pictures, then the question; greedy unless the task says otherwise."""
        text, told, doc_to_visual, doc_id, task, split = request.args
        pictures: Sequence[Image.Image] = doc_to_visual(self.task_dict[task][split][doc_id])
        content = [{"type": "image_url", "image_url": {"url": _url(picture)}} for picture in pictures]
        sampled = bool(told.get("do_sample"))
        return {
            "model": self.name,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            "max_tokens": told.get("max_new_tokens", MAX_NEW_TOKENS),
            "temperature": told.get("temperature", 1.0) if sampled else 0,
            "add_special_tokens": True,  # LLaVA's chat templates leave the begin of the text to the tokenizer
            "mm_processor_kwargs": {"visiondrop": self.asked},
        }

    def _answer(self, body: dict[str, Any]) -> str:
        found = fetch(f"{self.url}/v1/chat/completions", body)
        return found["choices"][0]["message"]["content"].strip()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not asked for by any of our tasks."""
        raise NotImplementedError("a served model answers in words only")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not asked for by any of our tasks."""
        raise NotImplementedError("a served model answers one question at a time")


def _url(picture: Image.Image) -> str:
    """A picture as a data URL, unchanged by its coding."""
    held = io.BytesIO()
    picture.convert("RGB").save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
