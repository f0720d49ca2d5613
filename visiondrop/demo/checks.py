"""What can be told about a request to `ask` before a model of several gigabytes is loaded."""

import io
import os
from typing import Any

from PIL import Image

from ..errors import VisionDropError
from ..families import loader
from ..families.guards import refuse_spelled_placeholder
from ..methods.registry import check_options, make_plan
from ..plans.budget import Budget
from ..precision import precision

_REFUSALS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)  # what PIL's writers raise


def check_request(question: str, method: str, options: dict[str, Any], max_new_tokens: int, dtype: str) -> None:
    """Refuse an unknown method, option or dtype, an empty question or one that spells the placeholder, and a length without a token."""
    check_options(method, options)
    if not isinstance(question, str) or not question.strip():
        raise VisionDropError(f"--question {question!r}: write what is to be asked about the image")
    refuse_spelled_placeholder(question)
    if max_new_tokens < 1:
        raise VisionDropError(f"--max-new-tokens {max_new_tokens}: give a number of at least 1")
    precision(dtype)


def check_reachable(model: str, method: str, tokens: Budget, options: dict[str, Any]) -> None:
    """Make the plan that `apply` will make, for the shape that the checkpoint's config.json describes.

    Args:
        model: folder or hub id (which is fetched now, as loading would).

    Raises:
        VisionDropError: what is wrong with the folder, with an option's value, or with the budget.
    """
    make_plan(method, tokens, loader().shape_of(model), options)


def check_output(path: str) -> None:
    """Refuse a picture file that could not be written: folder, permission, or an ending that PIL has no writer for.

    The writer is tried on a small picture in memory: some formats are known to PIL but need a library that is not there,
    or take no colours.
    """
    folder = os.path.dirname(os.path.abspath(path))
    writable = os.path.isdir(folder) and os.access(folder, os.W_OK) and not os.path.isdir(path)
    if not writable or (os.path.exists(path) and not os.access(path, os.W_OK)):
        raise VisionDropError(f"--show {path}: cannot write there; give a file in an existing, writable folder")
    ending = os.path.splitext(path)[1].lower()
    kind = Image.registered_extensions().get(ending)
    try:
        Image.new("RGB", (2, 2)).save(io.BytesIO(), format=kind or "unknown")
    except _REFUSALS as error:
        raise VisionDropError(
            f"--show {path}: no colour picture can be written with the ending {ending!r}; use .png, .jpg, .webp or .pdf"
        ) from error
