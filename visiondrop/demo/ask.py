"""One question about one image: the answer, tokens per layer, time, and a picture of what was kept."""

import os
import time

import torch

from ..api import apply
from ..errors import VisionDropError
from ..families import loader
from ..methods.registry import check_options
from .show import draw


def ask(
    image: str,
    question: str,
    model: str,
    method: str,
    tokens: int | None,
    options: dict,
    show: str | None = None,
    max_new_tokens: int = 64,
    dtype: str = "auto",
) -> str:
    """Load `model`, apply the method, print answer, ledger and time; draw the kept patches into `show`.

    Args:
        image: file; model: folder or hub id of a LLaVA checkpoint; options: of the method.
        dtype: "auto" is float16 on an accelerator and float32 on a CPU.

    Returns:
        The answer.
    """
    if show is not None:
        _check_writable(show)
    check_options(method, options)
    picture = loader().open_image(image)
    precision = {"auto": "float16" if torch.cuda.is_available() else "float32"}.get(dtype, dtype)
    loaded = loader().load(model, getattr(torch, precision))
    inputs = loaded.inputs(picture, question)
    with apply(loaded.model, method=method, tokens=tokens, options=options, report=True) as handle:
        start = time.perf_counter()
        new = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        seconds = time.perf_counter() - start
        answer = loaded.text(new[0])
        print(answer)
        print(handle.ledger)
        print(
            f"{seconds:.2f} s for {new.shape[1]} new tokens on {loaded.model.device} in {precision}, encoding included"
        )
        if show is not None:
            draw(picture, handle.report, loaded.grid, show)
            print(f"kept patches drawn into {show}")
    return answer


def _check_writable(path: str) -> None:
    """Refuse an output that cannot be written before the model is loaded."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
        raise VisionDropError(f"--show {path}: cannot write there; give a file in an existing, writable folder")
