"""PruMerge+ against an independent dense reference in float64, a whole model included."""

import math

import numpy as np
import pytest
import torch

import visiondrop
from tests.support import models
from visiondrop.methods.encoder import prumerge


def dense(x: np.ndarray, keys: np.ndarray, a: np.ndarray, count: int, near: int) -> tuple[list[int], np.ndarray]:
    """Patch by patch."""
    best = sorted(range(len(a)), key=lambda i: -a[i])
    kept = best[: (count + 1) // 4]
    step = max(1, int(int(1 / (len(kept) / len(a))) / 3))
    spare, room = [i for i in range(0, len(a) - 1, step) if i not in kept], count - len(kept)
    kept += spare if len(spare) <= room else [spare[math.ceil(i * len(spare) / room)] for i in range(room)]
    kept = (kept + [i for i in best if i not in kept])[:count]
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    rows = []
    for i in kept:
        others = sorted((j for j in range(len(a)) if j != i), key=lambda j: -(unit[i] @ unit[j]))[:near]
        rows.append(x[i] + sum(a[j] * x[j] for j in others))
    rows.append(sum(a[j] * x[j] for j in range(len(a)) if j not in kept))
    return kept, np.array(rows)


@pytest.mark.parametrize("count", [3, 15, 31, 63])
def test_the_dense_reference_and_a_batch_is_its_singles(count):
    draw = torch.Generator().manual_seed(count)
    x, keys = torch.randn(2, 144, 10, generator=draw), torch.randn(2, 144, 8, generator=draw)
    a = torch.rand(2, 144, generator=draw).softmax(dim=1)
    chosen = prumerge.spaced(a, count)
    value, _ = prumerge.merged(x, keys, a, chosen, 32)
    for i in range(2):
        kept, rows = dense(x[i].double().numpy(), keys[i].double().numpy(), a[i].double().numpy(), count, 32)
        assert chosen[i].tolist() == kept
        assert np.abs(value[i].numpy() - rows).max() <= 1e-5
        assert torch.equal(prumerge.spaced(a[i : i + 1], count)[0], chosen[i])


def test_a_model_reads_the_layer_behind_its_features():
    model, pictures = models.native(8), models.pixels(0)
    with visiondrop.apply(model, "prumerge", tokens=64, report=True) as handle:
        model(input_ids=torch.tensor([models.prompt()]), images=pictures)
        stage = handle.report.stages[0]
    tower = next(m for m in model.modules() if hasattr(m, "pre_layrnorm"))
    with torch.no_grad():
        states = tower(pictures, output_hidden_states=True).hidden_states[-2]
        last = tower.encoder.layers[-1]
        normed = last.layer_norm1(states)
        q, k = (f(normed)[0].double().numpy() for f in (last.self_attn.q_proj, last.self_attn.k_proj))
    logits = q[0] @ k.T / np.sqrt(k.shape[1])
    a = np.exp(logits - logits.max())
    a = (a / a.sum())[1:]
    kept, rows = dense(states[0, 1:].double().numpy(), k[1:], a, 63, 32)
    assert stage.kept().tolist()[:-1] == kept
    assert np.abs(stage.hidden[0].numpy() - rows).max() <= 2e-5


def test_equal_attention_goes_to_the_smallest_patch():
    assert prumerge.spaced(torch.ones(1, 24), 7).tolist() == [[0, 1, 4, 8, 12, 16, 20]]


@pytest.mark.parametrize("budget", [64, 100, 256, 300, 400, 500])
def test_spaced_patches_reach_the_bottom_at_every_budget(budget):
    """Where there is no room for every s-th patch, they are thinned evenly, not cut off at the end of the raster."""
    scores = torch.rand(3, 576, generator=torch.Generator().manual_seed(budget))
    chosen = prumerge.spaced(scores, budget - 1)
    for row in chosen:
        assert len(set(row.tolist())) == budget - 1
        rows = (row[budget // 4 :] // 24).bincount(minlength=24)  # what is not there for its attention
        assert rows[1:].min() > 0 and rows[12:].sum() > 0.4 * rows.sum()
