"""How many operators pruning adds to a prefill: each is a kernel that the host launches, most of the time at batch 1.

Counted on the CPU by a dispatch mode, views left out; no card is needed.  Lengths fix the counts, whatever the weights.
"""

import inspect
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import visiondrop
from eval.efficiency.models import BEFORE, build, crops, stack_input
from visiondrop.methods.encoder.vispruner import diverse
from visiondrop.stack.passes import PrefillRun

LAYERS = 32
SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_to_copy", "copy_")


class Operators(TorchDispatchMode):
    """Counts every operator inside the block that is no view (`_unsafe_view` is one in all but name)."""

    def __init__(self):
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if not func.is_view and name not in ("lift_fresh", "_unsafe_view"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model():
    return build(SIZE)


def prefill(model, rows: int, uneven: bool = False) -> Counter:
    hidden, layout = stack_input(model, rows, crops(1, LAYERS), uneven=uneven)
    mask = layout().mask
    with Operators() as seen:
        model.model(inputs_embeds=hidden, attention_mask=mask, layout=layout(), use_cache=True)
    return seen.counts


@pytest.mark.parametrize(
    "method, options, most",
    [
        ("visionzip", {"tokens": 64}, 5),
        ("vispruner", {"tokens": 64}, 5),
        ("fastv", {"tokens": 96}, 45),
        ("visiondrop", {"tokens": 64}, 3 * 40 + 28),
    ],
)
def test_operators_that_a_method_adds_to_the_stack(model, method, options, most):
    plain = prefill(model, 1).total()
    with visiondrop.apply(model, method, **options):
        prefill(model, 1)  # what is made once per process is there
        pruned = prefill(model, 1)
    assert 0 < pruned.total() - plain <= most, (pruned.total() - plain, pruned)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_stage_launches_little_and_moves_nothing(model, rows, monkeypatch):
    """At most 40 operators, no copy and no look at data."""
    stages, prune = [], PrefillRun._prune

    def counted(run, layer):
        with Operators() as seen:
            prune(run, layer)
        stages.append(seen.counts)

    monkeypatch.setattr(PrefillRun, "_prune", counted)
    with visiondrop.apply(model, "visiondrop", tokens=40):
        prefill(model, rows)
        stages.clear()
        prefill(model, rows)
    assert len(stages) == 3
    for stage in stages:
        assert stage.total() <= 40, (stage.total(), stage)
        assert not [name for name in SYNCHRONISING if stage[name]], stage


def test_positions_of_later_segments_are_not_embedded_again(model):
    """One rotary embedding per prefill, also where rows are padded."""
    calls, rotary = [], model.model.rotary_emb
    hook = rotary.register_forward_hook(lambda *_: calls.append(1))
    try:
        with visiondrop.apply(model, "visiondrop", tokens=64):
            for uneven in (False, True):
                calls.clear()
                prefill(model, 2, uneven)
                assert len(calls) <= 2, len(calls)  # transformers' own, of the unpruned input, and ours
    finally:
        hook.remove()


def test_a_round_of_vispruner_is_five_operators():
    states = torch.randn(1, 577, 32)
    pool = torch.arange(544)[None]
    with Operators() as few:
        diverse(states, pool, 536)
    with Operators() as more:
        diverse(states, pool, 528)
    assert more.counts.total() - few.counts.total() <= 5, more.counts


def test_counting_sees_copies_and_looks_at_data():
    with Operators() as seen:
        x = torch.ones(3).double()
        x.view(3, 1)
        bool(x.any())
    assert seen.counts["_to_copy"] == 1 and seen.counts["_local_scalar_dense"] and not seen.counts["view"]
    assert inspect.signature(stack_input).parameters["text"].default > BEFORE
