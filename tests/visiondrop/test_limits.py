"""What must not happen: large maps, wasted layers, wrong caches, silent mistakes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

import visiondrop
from tests.support import models
from visiondrop.ops.merge import merge
from visiondrop.ops.scores import received
from visiondrop.ops.selection import complement, top_k
from visiondrop.plans.flops import LLAVA_7B
from visiondrop.plans.shape import VisualShape
from visiondrop.pruner import Pruner
from visiondrop.stack.cache import PrunedCache
from visiondrop.stack.layout import Image, Layout
from visiondrop.stack.passes import PrefillRun
from visiondrop.tower.encoder import EncoderView, Probe, Seen, Settings, embed, run_layers

LAYERS = 4


@pytest.fixture(scope="module")
def native():
    return models.native(LAYERS)


@pytest.fixture(scope="module")
def hub():
    return models.hub(LAYERS)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("images", [1, 5])
def test_no_stage_builds_an_attention_map(images):
    """2,880 visual tokens enter the stack: inside a stage nothing exceeds heads x chunk x length."""
    visual, text, chunk, heads = 2880, 57, 64, 4
    model = models.native(LAYERS)
    shape = VisualShape(layers=LAYERS, patches=visual // images)
    options = {"encoder": "off", "layers": (1, 2, 3)}
    pruner = Pruner("visiondrop", 1000 // images, options, shape, LLAVA_7B, chunk=chunk)
    ordinals = torch.full((1, visual + text), -1)
    ordinals[:, 35 : 35 + visual] = torch.arange(images).repeat_interleave(visual // images)
    hidden = torch.randn(1, visual + text, 128)
    layout = Layout.build(ordinals, None, [Image(shape)] * images)
    run = pruner.start(model.model, hidden, None, None, None, layout)
    assert isinstance(run, PrefillRun)
    run.enter(0, hidden)
    with Largest() as seen:
        run._prune(1)
    length = visual + text
    assert seen.elements <= heads * chunk * length < heads * visual * length
    assert run.rows.width == images * pruner.plan.counts[1] + text


def test_scores_in_chunks_equal_the_map():
    torch.manual_seed(0)
    images, heads, count, before, width = 2, 4, 21, 5, 8
    query = torch.randn(images, heads, count, width)
    key = torch.randn(images, 2, before + count, width)
    logits = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * width**-0.5
    past = torch.arange(before + count)
    causal = past > (before + torch.arange(count))[:, None]
    for mask in ("causal", "queries", "bidirectional"):
        full = logits if mask == "bidirectional" else logits.masked_fill(causal, float("-inf"))
        columns = full.softmax(-1)[..., before:].mean(1).sum(1)
        seen_by = torch.arange(count, 0, -1) if mask == "queries" else count
        for chunk in (3, 8, 1000):
            got = received(query, key, width**-0.5, None, mask, chunk)
            assert torch.allclose(got, columns / seen_by, atol=1e-6)


def test_merge_by_hand():
    """Eight tokens, two dominant, two contextual: strides, cosine, reference plus mean, order."""
    hidden = torch.arange(8.0).view(1, 8, 1) + 1
    angle = torch.tensor([0, 0, 1.0, 2.0, 1.1, 0, 1.9, 0.9])
    metric = torch.stack([angle.cos(), angle.sin()], dim=-1)[None] * 3
    dominant = torch.tensor([[1, 5]])
    out = merge(hidden, metric, dominant, 2)
    # rest = 0 2 3 4 6 7, stride 3, references = 0 and 4; candidates = 2 3 6 7
    assert out.index.tolist() == [[1, 5, 0, 4]] and out.merged.tolist() == [[2, 3, 6, 7]]
    assert out.assignment.tolist() == [[1, 1, 1, 1]]
    assert out.value[0, :, 0].tolist() == [2, 6, 1, 5 + (3 + 4 + 7 + 8) / 4]
    assert merge(hidden, metric, dominant, 0).index.tolist() == [[1, 5]]
    assert merge(hidden, metric, dominant, 6).merged.shape == (1, 0)
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8]])
    assert top_k(scores, 2).tolist() == [[1, 3]] and complement(top_k(scores, 2), 4).tolist() == [[0, 2]]


def test_encoder_scores_equal_the_towers_own_attention():
    model = models.native(LAYERS, attn="eager")
    tower = model.get_vision_tower()
    pictures = models.pixels(0, 1)
    probe = Probe()
    hidden = run_layers(tower.clip, embed(tower.clip, pictures), 0, 2, {2: probe})
    seen = Seen(hidden, 2, 4, {2: probe})
    from transformers import CLIPVisionModel

    stock = CLIPVisionModel._from_config(tower.config, attn_implementation="eager").eval()
    stock.load_state_dict(tower.clip.state_dict())
    out = stock(pictures, output_attentions=True, output_hidden_states=True)
    assert torch.equal(hidden, out.hidden_states[-2])
    view = EncoderView(seen, True, 64)
    assert torch.allclose(view.score(), out.attentions[-2][:, :, 0, 1:].mean(1), atol=1e-7)
    without = EncoderView(seen, False, 64, Settings(chunk=100))
    assert torch.allclose(without.score(), out.attentions[-2].mean((1, 2)), atol=1e-7)


def test_the_last_tower_layer_is_never_run_and_the_head_sees_one_row(native):
    last = native.get_vision_tower().clip.encoder.layers[-1]
    calls, rows = [], []
    hooks = [
        last.register_forward_hook(lambda *_: calls.append(1)),
        native.lm_head.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[1])),
    ]
    try:
        for handle in (None, visiondrop.apply(native, tokens=64)):
            native.generate(torch.tensor([models.prompt()]), images=models.pixels(0), max_new_tokens=2, do_sample=False)
            if handle is not None:
                handle.remove()
    finally:
        for hook in hooks:
            hook.remove()
    assert not calls and set(rows) == {1}


def test_cache_lengths_follow_the_ledger_and_the_outside_sees_unpruned_ones(native):
    with visiondrop.apply(native, tokens=64) as handle:
        out = native.generate(
            torch.tensor([models.prompt()]),
            images=models.pixels(0),
            max_new_tokens=1,
            do_sample=False,
            return_dict_in_generate=True,
        )
        cache = out.past_key_values
        assert isinstance(cache, PrunedCache) and cache.get_seq_length() == 57 + 576
        assert cache.physical_lengths() == [n + 57 for n in handle.ledger.tokens_per_layer]
        assert cache.get_mask_sizes(1, 3) == (cache.physical_lengths()[3] + 1, 0)
        cache.crop(-2)
        assert cache.get_seq_length() == 57 + 574 and cache.segments[-1].count == cache.physical_lengths()[-1]
        cache.reset()
        assert cache.get_seq_length() == 0


def test_a_cache_the_caller_holds_stays_the_right_one(native):
    ids, pictures = torch.tensor([models.prompt()]), models.pixels(0)
    with visiondrop.apply(native, tokens=64):
        cache = DynamicCache(config=native.config)
        native(input_ids=ids, images=pictures, past_key_values=cache, use_cache=True)
        step = native(input_ids=torch.tensor([[7]]), past_key_values=cache, use_cache=True).logits
        whole = native(input_ids=torch.cat([ids, torch.tensor([[7]])], dim=1), images=pictures).logits
        assert (step[:, -1] - whole[:, -1]).abs().max() <= 1e-5


def test_text_before_an_image_may_already_be_cached(native):
    text, ids, pictures = models.prompt(9, 20, 0)[:-1], models.prompt(), models.pixels(0)
    with visiondrop.apply(native, tokens=64):
        cache = DynamicCache(config=native.config)
        native(input_ids=torch.tensor([text]), past_key_values=cache, use_cache=True)
        later = native(input_ids=torch.tensor([text + ids]), images=pictures, past_key_values=cache, use_cache=True)
        whole = native(input_ids=torch.tensor([text + ids]), images=pictures)
        assert (later.logits[:, -1] - whole.logits[:, -1]).abs().max() <= 1e-5


def test_what_would_be_computed_wrongly_is_refused(native, hub):
    ids, pictures = torch.tensor([models.prompt()]), models.pixels(0)
    hub_ids = torch.tensor([models.to_hub(models.prompt())])
    with visiondrop.apply(native, tokens=64), visiondrop.apply(hub, tokens=64):
        with pytest.raises(visiondrop.UnsupportedError, match="labels"):
            native(input_ids=ids, images=pictures, labels=ids)
        with pytest.raises(visiondrop.UnsupportedError, match="labels"):
            hub(input_ids=hub_ids, pixel_values=pictures, labels=hub_ids)
        static = StaticCache(config=native.config, max_cache_len=700)
        with pytest.raises(visiondrop.VisionDropError, match="static"):
            native(input_ids=ids, images=pictures, past_key_values=static, use_cache=True)
        for size in (100, 600):
            with pytest.raises(visiondrop.UnsupportedError, match="prefill_chunk_size"):
                native.generate(ids, images=pictures, max_new_tokens=2, prefill_chunk_size=size)
            with pytest.raises(visiondrop.UnsupportedError, match="prefill_chunk_size"):
                hub.generate(input_ids=hub_ids, pixel_values=pictures, max_new_tokens=2, prefill_chunk_size=size)
        for implementation in ("static", "quantized", "offloaded"):
            with pytest.raises((visiondrop.VisionDropError, ImportError)):
                native.generate(ids, images=pictures, max_new_tokens=2, cache_implementation=implementation)
        with pytest.raises(visiondrop.VisionDropError, match="2 images for 1"):
            native.generate(ids, images=models.pixels(0, 1), max_new_tokens=2)
        with pytest.raises(visiondrop.VisionDropError, match="0 images for 1"):
            native.generate(ids, max_new_tokens=2)
        with pytest.raises(visiondrop.VisionDropError, match="0 images for 1"):
            native(input_ids=ids)
        with pytest.raises(visiondrop.VisionDropError, match=r"\[N, 3, H, W\]"):
            native.generate(ids, images=torch.zeros(1, 1, 336, 336), max_new_tokens=2)
        # The refusals left the model usable.
        assert native.generate(ids, images=pictures, max_new_tokens=2).shape == (1, 2)
    with pytest.raises(visiondrop.VisionDropError, match="LlavaForConditionalGeneration"):
        visiondrop.apply(torch.nn.Linear(2, 2), tokens=64)
    with pytest.raises(visiondrop.VisionDropError, match="report=True"):
        _ = visiondrop.apply(native, tokens=64).report
    visiondrop.apply(native, method="none").remove()


def test_loss_without_pruning(native, hub):
    ids, pictures = torch.tensor([models.prompt()]), models.pixels(0)
    labels = ids.clone()
    labels[labels < 0] = -100
    hub_ids = torch.tensor([models.to_hub(models.prompt())])
    hub_labels = hub_ids.masked_fill(hub_ids == models.HUB_IMAGE_ID, -100)
    ours = native(input_ids=ids, images=pictures, labels=labels).loss
    stock = hub(input_ids=hub_ids, pixel_values=pictures, labels=hub_labels).loss
    assert torch.isfinite(ours) and abs(ours - stock) < 1e-2  # the hub's head has one row more


def test_hidden_states_can_be_asked_for(native):
    with visiondrop.apply(native, tokens=64) as handle:
        out = native(input_ids=torch.tensor([models.prompt()]), images=models.pixels(0), output_hidden_states=True)
        assert [h.shape[1] - 57 for h in out.hidden_states[1:]] == handle.ledger.tokens_per_layer
