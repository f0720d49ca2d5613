"""Which dtype a model is best run in on this machine, where nobody said."""

import torch

from .errors import VisionDropError, closest

DTYPES = ("auto", "float32", "float16", "bfloat16")
FAST = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # what makes bfloat16 the faster one on a CPU


def fast_bfloat16() -> str | None:
    """The instructions with which this CPU multiplies bfloat16 faster than float32, or None."""
    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return next((name for flag, name in FAST.items() if has.get(flag)), None)


def precision(dtype: str = "auto") -> tuple[torch.dtype, str]:
    """The dtype of weights and states, and how to say it.

    Args:
        dtype: one of `DTYPES`; "auto" is float16 on CUDA, bfloat16 on a CPU that is faster with it, else float32.  Scores
            are float32 in every dtype.
    """
    if dtype not in DTYPES:
        raise VisionDropError(f"--dtype {dtype!r}: {closest(dtype, DTYPES)}")
    if dtype != "auto":
        return getattr(torch, dtype), dtype
    if torch.cuda.is_available():
        return torch.float16, "float16"
    fast = fast_bfloat16()
    if fast is None:
        return torch.float32, "float32"
    return torch.bfloat16, f"bfloat16 (this CPU has {fast}; --dtype float32 for the numbers of the tables)"
