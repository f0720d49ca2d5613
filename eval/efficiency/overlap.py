"""Do a method's choices survive another dtype?  Kept tokens in bfloat16 against float32, picture by picture.

Scores are float32 in every dtype; what they are computed from is not.
"""

from typing import Any

import torch
from tqdm import tqdm

import visiondrop
from llava.adapter import load
from visiondrop.advice.samples import read_samples

METHODS = ("visiondrop", "visionzip", "vispruner", "scope", "fastv", "pyramiddrop", "sparsevlm", "divprune")


def measure(path: str, data: str, methods: list[str], tokens: int, limit: int) -> list[dict[str, Any]]:
    """One line per method: the share of tokens kept in float32 that bfloat16 keeps too, and of equal answers.

    Args:
        path: a checkpoint; data: a question set by name, a folder or a file; limit: samples asked.
    """
    samples, _ = read_samples(data, limit=limit)
    models = {dtype: load(path, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return [_method(models, method, tokens, samples) for method in methods]


def _method(models: dict, method: str, tokens: int, samples: list) -> dict[str, Any]:
    """The mean over samples of each stage's overlap, and the share of answers that came out the same."""
    shares: dict[str, list[float]] = {}
    same = 0
    for sample in tqdm(samples, desc=f"{method} {tokens}", leave=False):
        answers, kept = [], []
        for loaded in models.values():
            with (
                visiondrop.apply(loaded.model, method, tokens, report=True) as handle,
                handle.questions([sample.question]),
            ):
                new = loaded.generate(
                    loaded.inputs(sample.open()[0], sample.question), do_sample=False, max_new_tokens=8
                )
                answers.append(loaded.text(new[0]))
                kept.append({str(stage.layer): set(stage.dominant[0].tolist()) for stage in handle.report.stages})
        same += answers[0] == answers[1]
        for layer, wanted in kept[0].items():
            shares.setdefault(layer, []).append(len(wanted & kept[1][layer]) / len(wanted))
    overlap = {layer: sum(values) / len(values) for layer, values in shares.items()}
    return {
        "method": method,
        "tokens": tokens,
        "n": len(samples),
        "overlap": overlap,
        "same_answers": same / len(samples),
    }
