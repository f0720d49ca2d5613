"""One question to a server whose answer is streamed, and what the server says of itself while it works."""

import base64
import io
import json
import re
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import psutil
from PIL import Image

from eval.errors import EvaluationError
from eval.models.server import opened

SIDE, BLOCKS = 336, 24  # pixels of a picture's side, and its coloured squares along a side: one a patch
EVERY = 0.25  # seconds between two looks at /metrics
METRIC = re.compile(r"^(vllm:\w+)(?:\{(.*)\})? ([-+.\deE]+|NaN)$", re.M)


@dataclass(frozen=True)
class Answer:
    """When a question was asked and its tokens came, in seconds of one clock.

    Attributes:
        asked: the moment; tokens: a moment for each token; prompt: tokens of the prompt, those of pictures among them.
    """

    asked: float
    tokens: tuple[float, ...]
    prompt: int

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.tokens[0] - self.asked

    @property
    def between(self) -> list[float]:
        """Seconds between neighbouring tokens."""
        return [later - earlier for earlier, later in zip(self.tokens, self.tokens[1:])]


def body(model: str, seed: int, setting: dict[str, Any], new_tokens: int) -> dict[str, Any]:
    """A question about a picture of random squares, which no cache has seen, answered by exactly `new_tokens` tokens."""
    squares = np.random.default_rng(seed).integers(0, 256, (BLOCKS, BLOCKS, 3), dtype=np.uint8)
    held = io.BytesIO()
    Image.fromarray(squares).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(held, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
    text = {"type": "text", "text": "What is the color of the object? Answer with one word."}
    return {
        "model": model,
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]}],
        "max_tokens": new_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "add_special_tokens": True,
        "mm_processor_kwargs": {"visiondrop": setting},
        "stream": True,
        "return_token_ids": True,  # a chunk comes for every token then, one without text too
        "stream_options": {"include_usage": True},
    }


def ask(url: str, asked: dict[str, Any]) -> Answer:
    """Ask, and note when each token comes.

    Raises:
        EvaluationError: the server refuses, is gone, or ends without a token.
    """
    start, moments, prompt = time.monotonic(), [], 0
    with opened(f"{url}/v1/chat/completions", asked) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise EvaluationError(f"the server at {url} broke an answer off: {chunk['error']}", "batch")
            for choice in chunk.get("choices", ()):
                moments += [time.monotonic()] * len(choice.get("token_ids") or ())
            prompt = (chunk.get("usage") or {}).get("prompt_tokens", prompt)
    if not moments:
        raise EvaluationError(f"the server at {url} ended an answer without a token", "batch")
    return Answer(start, tuple(moments), prompt)


def metrics(text: str) -> dict[str, float]:
    """{name: sum over its labels} of a page of Prometheus metrics, and the size of the cache as "kv_tokens"."""
    out: dict[str, float] = {}
    for name, labels, value in METRIC.findall(text):
        out[name] = out.get(name, 0.0) + float(value)
        if name == "vllm:cache_config_info":
            told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if told.get("num_gpu_blocks", "").isdigit() and told.get("block_size", "").isdigit():
                out["kv_tokens"] = float(int(told["num_gpu_blocks"]) * int(told["block_size"]))
    return out


def cpu_seconds(process: int) -> float:
    """Processor time of a process and its children so far, in user and system mode.

    Raises:
        EvaluationError: there is no such process.
    """
    try:
        first = psutil.Process(process)
        times = [one.cpu_times() for one in (first, *first.children(recursive=True))]
    except psutil.Error as error:
        raise EvaluationError(
            f"--process {process}: {error}; give the server's first process on this machine"
        ) from None
    return sum(one.user + one.system for one in times)


class Watch:
    """Looks at a server's metrics inside a block.

    Attributes:
        peak: the largest share of the cache that was in use; hits: tokens that came from the prefix cache; kv_tokens: that the
            cache holds, or None; cpu: seconds of processor time that the server's processes took, or None.
    """

    def __init__(self, url: str, process: int | None = None):
        self.url, self.peak, self.hits, self.kv_tokens = url, 0.0, 0, None
        self.process, self.cpu = process, None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _read(self) -> dict[str, float]:
        with opened(f"{self.url}/metrics") as answer:
            return metrics(answer.read().decode())

    def _look(self) -> None:
        while not self._over.wait(EVERY):
            self.peak = max(self.peak, self._read().get("vllm:kv_cache_usage_perc", 0.0))

    def __enter__(self) -> "Watch":
        self._before = self._read().get("vllm:prefix_cache_hits_total", 0.0)
        self._spent = cpu_seconds(self.process) if self.process else 0.0
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if error is None:
            self.cpu = cpu_seconds(self.process) - self._spent if self.process else None
            found = self._read()
            self.hits = int(found.get("vllm:prefix_cache_hits_total", 0.0) - self._before)
            self.kv_tokens = int(found["kv_tokens"]) if "kv_tokens" in found else None
