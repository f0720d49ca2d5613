"""One model, several conversations and threads: each equals what a model of its own would do."""

import threading

import pytest
import torch

import visiondrop
from tests.support import models

LAYERS = 16
SETTINGS = [("visiondrop", {"tokens": 100}), ("pyramiddrop", {"tokens": 100}), ("sparsevlm", {"tokens": 64})]


@pytest.fixture(scope="module")
def classes():
    return {"native": models.native(LAYERS), "hub": models.hub(LAYERS)}


@pytest.fixture(params=["native", "hub"])
def model(request, classes):
    return classes[request.param]


def inputs(model, ids: list[int], *pictures: int) -> dict:
    """Arguments of one row of `model`, whichever class it is."""
    native = hasattr(model, "get_vision_tower")
    ids = torch.tensor([ids if native else models.to_hub(ids)])
    pixels = models.pixels(*pictures)
    return {"input_ids": ids, "images": pixels} if native else {"input_ids": ids, "pixel_values": pixels}


def answer(model, ids: list[int], *pictures: int) -> list[int]:
    """Four greedy new tokens."""
    given = inputs(model, ids, *pictures)
    return model.generate(**given, max_new_tokens=4, do_sample=False)[0, -4:].tolist()


def logits(model, ids: list[int], *pictures: int) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(model, ids, *pictures)).logits[0, -1]


def turns(seed: int) -> tuple[list[int], list[int]]:
    """A first prompt, and it with an answer, another question and another image after it."""
    first = models.prompt(seed, 35 - seed, 12 + 3 * seed)
    return first, [*first, 7, 9, 11, *models.prompt(seed + 5, 4, 9)]


@pytest.mark.parametrize("method, options", SETTINGS)
def test_interleaved_conversations_equal_separate_ones(model, method, options):
    separate = {}
    for seed in (0, 1):
        with visiondrop.apply(model, method, **options):
            first, second = turns(seed)
            separate[seed] = [logits(model, first, seed), logits(model, second, seed, seed + 2)]
    with visiondrop.apply(model, method, **options):
        found = {seed: [logits(model, turns(seed)[0], seed)] for seed in (0, 1)}
        for seed in (0, 1):
            found[seed].append(logits(model, turns(seed)[1], seed, seed + 2))
    for seed in (0, 1):
        assert all(map(torch.equal, found[seed], separate[seed]))


def test_the_end_of_the_first_prompt_is_what_an_interleaved_conversation_could_lose(model):
    """Else the test above would compare nothing: without its first turn, the second one reads another question."""
    with visiondrop.apply(model, "pyramiddrop", tokens=100) as handle:
        first, second = turns(0)
        logits(model, first, 0)
        known = logits(model, second, 0, 2)
        handle.reset()
        assert not torch.equal(logits(model, second, 0, 2), known)


@pytest.mark.parametrize("method, options", SETTINGS)
def test_two_threads_that_generate_at_once_equal_separate_runs(model, method, options):
    asked = {seed: models.prompt(seed, 35 - 9 * seed, 12 + 5 * seed) for seed in (0, 1)}
    with visiondrop.apply(model, method, report=True, **options) as handle:
        separate, kept = {}, {}
        for seed, ids in asked.items():
            separate[seed] = answer(model, ids, seed)
            kept[seed] = handle.report.stages[-1].kept().tolist()
        wrong, barrier = [], threading.Barrier(2)

        def ask(seed: int) -> None:
            try:
                for _ in range(6):
                    barrier.wait(60)
                    found = answer(model, asked[seed], seed)
                    if found != separate[seed] or handle.report.stages[-1].kept().tolist() != kept[seed]:
                        wrong.append(seed)
            except BaseException as error:
                wrong.append(error)
                barrier.abort()

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("method, options", SETTINGS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_amid_a_pass_leaves_nothing(model, method, options, error):
    first, second = turns(0)
    with visiondrop.apply(model, method, **options):
        expected, before = logits(model, second, 0, 2), hooks(model)

    def fail(*_):
        raise error("amid a pass")

    stack = getattr(model.model, "language_model", model.model)
    with visiondrop.apply(model, method, **options):
        hook = stack.layers[2].register_forward_hook(fail)
        with pytest.raises(error):
            logits(model, first, 0)
        hook.remove()
        assert hooks(model) == before
        assert torch.equal(logits(model, second, 0, 2), expected)
