"""Captures: what Figures 1, 3 and 4 need of a model, as files results/figures/*.npz.

A file holds arrays and, under `about`, a JSON text with the model's fingerprint and everything else a caption says.
They are made by figures.reproduce.capture.
"""

import json
from pathlib import Path

import numpy as np

from eval.errors import EvaluationError
from figures.data import settings
from figures.data.choose import FIGURES


def read(file: Path) -> tuple[dict, dict]:
    """(arrays, about) of a capture.

    Raises:
        EvaluationError: the file is missing or damaged.
    """
    try:
        with np.load(file) as data:
            arrays = {name: data[name] for name in data.files}
        return arrays, json.loads(str(arrays.pop("about")))
    except FileNotFoundError:
        name = file.name.split("-")[0]
        raise EvaluationError(
            f"there is no {file}: make it with bash scripts/figures/{name}.sh, or python -m figures.reproduce.capture {name}"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(
            f"{file} is damaged ({error}): delete it and run python -m figures.reproduce.capture again"
        ) from None


def file_of(figure: str, model: str | None, folder: Path = FIGURES) -> Path:
    """Where a figure's capture is: figure1-testbed.npz, figure1-paper.npz."""
    return folder / f"{figure}-{settings.variant('figure2', model)[0].kind}.npz"
