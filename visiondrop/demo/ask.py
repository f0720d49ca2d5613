"""One question about one image: the answer, tokens per layer, time, and a picture of what was kept."""

import time

from ..api import apply
from ..errors import VisionDropError
from ..families import loader
from ..plans.budget import Budget
from ..precision import precision
from .checks import check_output, check_reachable, check_request
from .media import open_picture
from .show import draw


def ask(
    image: str,
    question: str,
    model: str,
    method: str,
    tokens: Budget,
    options: dict,
    show: str | None = None,
    max_new_tokens: int = 64,
    dtype: str = "auto",
) -> str:
    """Load `model`, apply the method, print answer, ledger and time; draw the kept patches into `show`.

    Whatever can be refused is refused before the model is loaded.

    Args:
        image: file of a picture, or of a video for a model that takes videos; model: folder or hub id of a checkpoint.
        options: of the method; show: where a picture of the kept patches is written.
        dtype: see `precision.precision`.

    Returns:
        The answer.
    """
    check_request(question, method, options, max_new_tokens, dtype)
    if show is not None:
        check_output(show)
    picture = open_picture(image)
    check_reachable(model, method, tokens, options)
    numbers, told = precision(dtype)
    loaded = loader().load(model, numbers)
    inputs = loaded.inputs(picture, question)
    with apply(loaded.model, method=method, tokens=tokens, options=options, report=True) as handle:
        start = time.perf_counter()
        with handle.questions([question]):
            new = loaded.generate(inputs, do_sample=False, max_new_tokens=max_new_tokens)
        seconds = time.perf_counter() - start
        answer = loaded.text(new[0])
        print(answer)
        print(handle.ledger)
        print(f"{seconds:.2f} s for {new.shape[1]} new tokens on {loaded.model.device} in {told}, encoding included")
        if show is not None:
            seen = loaded.seen(inputs)
            if seen is None:
                raise VisionDropError(
                    f"--show {show}: the tokens of {type(loaded.model).__name__} lie on no grid of the picture and cannot be "
                    "drawn; the answer stands above"
                )
            units, grid = seen
            draw(units, grid, handle.report, show)
            print(f"kept patches drawn into {show}")
    return answer
