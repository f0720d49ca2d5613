"""What people do with a model while a method is applied: copy, save, train with checkpointing, compile, reuse."""

import copy
import pickle

import pytest
import torch

import visiondrop
from eval.models.reuse import encode_together
from tests.support import models
from visiondrop.compat import HOOKS_RUN_AGAIN
from visiondrop.errors import UnsupportedError, VisionDropError
from visiondrop.reuse.prefix import encode_prefix, next_logits
from visiondrop.reuse.store import PrefixStore

LAYERS = 8
SETTINGS = [("visiondrop", {"tokens": 100}), ("pyramiddrop", {"tokens": 100}), ("sparsevlm", {"tokens": 64})]


@pytest.fixture(params=["native", "hub"])
def model(request):
    return getattr(models, request.param)(LAYERS)


def inputs(model, seed: int = 0) -> dict:
    native, ids = hasattr(model, "get_vision_tower"), models.prompt(seed)
    given = {"input_ids": torch.tensor([ids if native else models.to_hub(ids)])}
    return {**given, ("images" if native else "pixel_values"): models.pixels(seed)}


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("part", ["model", "stack"])
def test_copies_are_refused_while_pruned_and_work_afterwards(model, how, part, tmp_path):
    ways = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda x: pickle.loads(pickle.dumps(x)),
        "torch.save": lambda x: (torch.save(x, tmp_path / "x"), torch.load(tmp_path / "x", weights_only=False))[1],
    }
    with visiondrop.apply(model, tokens=100) as handle:
        with pytest.raises(visiondrop.VisionDropError, match="handle.remove"):
            ways[how](model if part == "model" else getattr(model.model, "language_model", model.model))
        pruned = model(**inputs(model)).logits
        handle.remove()
        twin = ways[how](model)
    with visiondrop.apply(twin, tokens=100):
        assert torch.equal(twin(**inputs(model)).logits, pruned)
        assert model(**inputs(model)).logits.shape[1] > pruned.shape[1], "the original stays as it is"


def test_save_pretrained_writes_the_stock_model(model, tmp_path):
    expected = model(**inputs(model)).logits
    with visiondrop.apply(model, tokens=100):
        model.save_pretrained(tmp_path / "pruned")
    model.save_pretrained(tmp_path / "stock")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "pruned" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()
    loaded = type(model).from_pretrained(tmp_path / "pruned").eval()
    assert torch.equal(loaded(**inputs(model)).logits, expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method, options", SETTINGS)
def test_gradients_with_checkpointing_equal_those_without(model, method, options, reentrant):
    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        with torch.enable_grad():
            model(**inputs(model)).logits.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model.train()
    model.requires_grad_(True)
    with visiondrop.apply(model, method, **options):
        plain = gradients()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        if HOOKS_RUN_AGAIN and not hasattr(model, "visual_shape"):  # older transformers, hub class
            with pytest.raises(UnsupportedError, match="gradient checkpointing .* needs a newer transformers"):
                gradients()
            return
        checkpointed = gradients()
    assert len(plain) == len(checkpointed) > 50
    for a, b in zip(plain, checkpointed):
        assert (a - b).abs().max() <= 1e-6 * max(1.0, float(a.abs().max()))


def test_a_model_through_torch_compile_answers_the_same(model):
    with visiondrop.apply(model, tokens=100), torch.no_grad():
        expected = model(**inputs(model)).logits
        compiled = torch.compile(model, backend="eager")
        assert (compiled(**inputs(model)).logits - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("layer", [0, 3])
def test_a_forward_that_stood_on_a_layer_is_called_and_comes_back(layer):
    """As accelerate puts one there for a model on several devices."""
    model, seen = models.hub(LAYERS), []
    module = model.model.language_model.layers[layer]
    stock = module.forward

    def own(hidden, *args, **kwargs):
        seen.append(hidden.shape[1])
        return stock(hidden, *args, **kwargs)

    module.forward = own
    with torch.no_grad():
        with visiondrop.apply(model, tokens=100):
            model(**inputs(model))
        model(**inputs(model))
    assert len(seen) == 2 and (layer == 0 or seen[0] < seen[1])
    assert module.forward is own


def test_a_copied_layer_of_a_pruned_model_is_refused():
    model = models.hub(LAYERS)
    with visiondrop.apply(model, tokens=100), pytest.raises(VisionDropError, match="remove"):
        copy.deepcopy(model.model.language_model.layers[3])


def test_a_store_shared_by_models_and_methods_never_gives_the_wrong_prefix():
    store, pixels, ids = PrefixStore(1 << 30), models.pixels(0)[0], models.prompt()[:35]
    first, second = models.native(LAYERS), models.native(LAYERS)
    with torch.no_grad():
        second.lm_head.weight.mul_(-1)
        second.model.layers[0].self_attn.v_proj.weight.mul_(2)
    question = [[5, 6, 7]]
    for model in (first, second, first):
        for options in ({"tokens": 100}, {"tokens": 120}, {"tokens": 100}):
            with visiondrop.apply(model, **options):
                alone = visiondrop.encode(model, pixels, ids=ids).logits(question)
                assert torch.equal(visiondrop.encode(model, pixels, ids=ids, store=store).logits(question), alone)
    with visiondrop.apply(first, tokens=100):
        visiondrop.encode(first, pixels, ids=ids, store=store)
        hits = store.hits
        visiondrop.encode(first, pixels, ids=ids, store=store)
        assert store.hits == hits + 1


def test_prefixes_joined_in_one_cache_answer_like_those_alone():
    model, ids, question = models.native(LAYERS), models.prompt()[:36], [[5, 6, 7]]
    with visiondrop.apply(model, tokens=100), torch.no_grad():
        pixels = models.pixels(0, 1)
        joined = encode_together(model, ids, (1, 0, 1), images=pixels, image_sizes=[(336, 336)] * 2)
        found = next_logits(model, joined, question * 3)
        for row, image in enumerate((1, 0, 1)):
            alone = encode_prefix(model, torch.tensor([ids]), images=pixels[image : image + 1])
            assert (found[row] - next_logits(model, alone, question)[0]).abs().max() <= 1e-4
    assert not torch.allclose(found[0], found[1]), "two images, or this test compares nothing"
