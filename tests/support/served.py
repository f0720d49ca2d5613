"""A real server of the exported testbed, in a process of its own, and our package's answers to compare with."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import visiondrop
from eval.files import ROOT
from llava.adapter import load
from testbed.samples import load as questions_of

SOURCE = ROOT / "checkpoints" / "testbed"
PLAIN = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024")
STARTING = 400  # seconds


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A running server.

    Attributes:
        url: of the server; model: what it serves, as requests name it; process: its first process; log: what it says.
    """

    def __init__(self, model: Path, log: Path, flags: Sequence[str], port: int | None = None):
        port = port or free_port()
        self.url, self.model, self.log = f"http://127.0.0.1:{port}", str(model), log
        told = [sys.executable, "-m", "visiondrop", "serve", str(model), *PLAIN, *flags, "--port", str(port)]
        env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if "--tensor-parallel-size" in flags:
            env["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"  # by itself vLLM needs a memory node for each process
        with open(log, "w") as stream:
            where = {"stdout": stream, "stderr": stream, "cwd": ROOT, "env": env, "start_new_session": True}
            self.process = subprocess.Popen(told, **where)

    def wait(self) -> "Server":
        """Until it answers."""
        end = time.monotonic() + STARTING
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.log.read_text()[-3000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(f"the server did not start: {self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """End all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(status, answer) of a chat completion."""
        data = json.dumps({"model": self.model, **body}).encode()
        asked = urllib.request.Request(f"{self.url}/v1/chat/completions", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def ask(self, picture: Image.Image, question: str, asked: dict[str, Any] | None = None, **more: Any) -> Any:
        """(status, the whole answer) of a question about a picture, greedily."""
        body: dict[str, Any] = {"messages": [message(picture, question)], "temperature": 0, "max_tokens": 6}
        body |= {
            "add_special_tokens": True,
            **more,
        }  # a chat template of LLaVA leaves it to the tokenizer to begin the text
        if asked is not None:
            body["mm_processor_kwargs"] = {"visiondrop": asked}
        return self.post(body)

    def answer(self, picture: Image.Image, question: str, asked: dict[str, Any] | None = None) -> str:
        """Its text."""
        status, found = self.ask(picture, question, asked)
        assert status == 200, found
        return found["choices"][0]["message"]["content"].strip()


def message(picture: Image.Image, question: str) -> dict[str, Any]:
    """A user's turn with a picture, unchanged by its coding."""
    held = io.BytesIO()
    picture.save(held, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
    return {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}],
    }


@contextmanager
def serving(model: Path, log: Path, *flags: str) -> Iterator[Server]:
    """A server that runs inside the block."""
    server = Server(model, log, flags)
    try:
        yield server.wait()
    finally:
        server.stop()


def samples(count: int) -> list[dict[str, Any]]:
    """Questions of the testbed's validation set with their pictures."""
    return questions_of("testbed_validation", count)


@torch.inference_mode()
def own_answers(asked: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Our package's answers, one question at a time, from the checkpoint the served one was exported from."""
    ours = load(str(SOURCE), torch.float32)
    with visiondrop.apply(ours.model, asked["method"], asked.get("tokens"), options=asked.get("options")):
        return [
            ours.text(ours.generate(ours.inputs(row["picture"], row["question"]), max_new_tokens=6, do_sample=False)[0])
            for row in rows
        ]


def all_answers(server: Server, rows: Sequence[dict[str, Any]], asked: Sequence[Any], clients: int = 4) -> list[str]:
    """The server's answers to as many questions with a setting each, by several clients at once."""
    with ThreadPoolExecutor(clients) as pool:
        pairs = [(row["picture"], row["question"], one) for row, one in zip(rows, asked, strict=True)]
        return list(pool.map(lambda pair: server.answer(*pair), pairs))
