"""DART's order of pivots against Python's sets, its picks against a plain loop, its amounts."""

import random

import pytest
import torch

import visiondrop
from tests.support import models
from visiondrop.methods.decoder import dart


@pytest.mark.parametrize("size", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("most", [60, 633, 3000, 200000])
def test_the_order_is_that_of_a_set(size, most):
    draw = random.Random(size * most)
    values = [draw.sample(range(most), size) for _ in range(100)]
    padded = torch.nn.functional.pad(torch.tensor(values), (0, 8 - size))
    order = dart.as_a_set(padded, torch.arange(8).expand(100, -1) < size)
    for row, columns in zip(values, order.tolist()):
        assert [row[c] for c in columns[:size]] == list(set(row))


def served(similarity: list[list[float]], own: list[int], order: list[int], count: int) -> list[int]:
    """By the definition; of a rest the first pivots take one more."""
    kept = set(own[:count])
    each, rest = divmod(max(0, count - len(own)), len(order))
    for turn, pivot in enumerate(order):
        left = sorted((i for i in range(len(similarity[0])) if i not in kept), key=lambda i: similarity[pivot][i])
        kept |= set(left[: each + (turn < rest)])
    return sorted(kept)


@pytest.mark.parametrize("count", [0, 3, 4, 12, 28, 31, 50])
def test_pivots_are_served_one_after_the_other(count):
    draw = torch.Generator().manual_seed(count)
    similarity = torch.rand(2, 8, 50, generator=draw)
    own = torch.stack([torch.randperm(50, generator=draw)[:4] for _ in range(2)])
    exists = torch.tensor([[True] * 8, [True] * 5 + [False] * 3])
    order = torch.tensor([[3, 1, 7, 0, 2, 4, 6, 5], [4, 2, 0, 1, 3, 5, 6, 7]])
    got = dart.serve(similarity, own, order, exists, count)
    for i, pivots in enumerate((8, 5)):
        wanted = served(similarity[i].tolist(), own[i].tolist(), order[i, :pivots].tolist(), count)
        assert got[i].tolist() == wanted and len(wanted) == count


def test_equal_similarities_go_to_the_smallest_slot():
    every = torch.ones(1, 8, dtype=torch.bool)
    got = dart.serve(torch.ones(1, 8, 30), torch.tensor([[5, 6, 7, 8]]), torch.arange(8)[None], every, 12)
    assert got.tolist() == [[*range(9), 9, 10, 11]]


def test_amounts():
    assert [visiondrop.plan("dart", t).counts[1] for t in (192, 128, 64, 36)] == [166, 98, 30, 0]
    assert "of 30 the first 2 pivots take one more" in str(visiondrop.plan("dart", 64).ledger())
    assert visiondrop.plan("dart", keep=28).notes == ()
    assert visiondrop.plan("dart", 64).text_guided
    with pytest.raises(visiondrop.VisionDropError, match="0 … 576"):
        visiondrop.plan("dart", keep=577)
    with pytest.raises(visiondrop.VisionDropError, match="36 … 576"):
        visiondrop.plan("dart", 35)


def test_an_image_with_little_or_nothing_behind_it():
    model = models.native(8)
    for after in (0, 1, 3):
        with visiondrop.apply(model, "dart", tokens=100, report=True) as handle:
            model(input_ids=torch.tensor([models.prompt(0, 35, after)]), images=models.pixels(0))
            assert handle.report.tokens_per_layer[0] == handle.plan.tokens_per_layer()
            assert len(set(handle.report.stages[0].kept().tolist())) == handle.plan.counts[1]
