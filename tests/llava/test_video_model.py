"""Video-LLaVA: temporal attention, both file layouts, pruning against a dense reference, batches and caches."""

import pytest
import torch

import visiondrop
from tests.support import dense_reference, models, video_models
from visiondrop.errors import VisionDropError
from visiondrop.plans.shape import VisualShape

BUDGET = 64  # of 8 x 64: 3 x 64 / 8 = 24 a frame after the encoder


@pytest.fixture(scope="module")
def native():
    return video_models.native()


@pytest.fixture(scope="module")
def plain():
    return video_models.native(temporal=False)


pytestmark = pytest.mark.filterwarnings("ignore:VideoLlavaForConditionalGeneration has no temporal")


@pytest.fixture(scope="module")
def hub():
    return video_models.hub()


def logits(model, rows, images, **more):
    ids, mask = models.pad(rows)
    return model(input_ids=ids, attention_mask=mask, images=images, **more).logits[:, -1]


def test_temporal_attention_equals_a_loop_over_patches(native):
    tower = native.get_video_tower()
    videos = torch.stack([video_models.video(0), video_models.video(1)]).transpose(1, 2)  # [2, 8, 3, H, W]
    found = tower(videos.flatten(0, 1))
    expected = [torch.stack([r[0] for r in dense_reference.tower(tower.clip, frames, 3)]) for frames in videos]
    assert found.shape == (16, 65, 64)
    assert (found - torch.cat(expected)).abs().max() <= 1e-5
    shuffled = tower(videos.flatten(0, 1).roll(1, dims=0))
    assert (shuffled.roll(-1, dims=0) - found).abs().max() > 1e-2  # frames do see one another


def test_without_temporal_attention_the_tower_is_clip_frame_by_frame(plain, hub):
    frames = video_models.video(2).transpose(0, 1)
    stock = hub.model.video_tower(frames, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(plain.get_video_tower()(frames), stock)
    names = [n for n, _ in plain.get_video_tower().named_parameters()]
    assert names and not [n for n in names if "temporal" in n]


PROMPTS = {
    "video": (["video"], [10, "video", 12]),
    "image": (["image"], [10, "image", 12]),
    "both": (["image", "video"], [4, "image", 5, "video", 12]),
    "turned": (["video", "image"], [4, "video", 5, "image", 12]),
}


def inputs(name: str) -> tuple[list[int], list[torch.Tensor]]:
    kinds, parts = PROMPTS[name]
    return video_models.prompt(*parts), [getattr(video_models, kind)(seed) for seed, kind in enumerate(kinds)]


@pytest.mark.parametrize("name", PROMPTS)
def test_unpruned_model_equals_transformers(plain, hub, name):
    row, images = inputs(name)
    found = plain(input_ids=torch.tensor([row]), images=images).logits
    expected = hub(**video_models.to_hub([row], images)).logits[..., : -video_models.EXTRA]
    assert found.shape == expected.shape and (found - expected).abs().max() <= 1e-5


METHODS = ["visiondrop", "visionzip", "vispruner", "fastv", "pyramiddrop", "random", "uniform", "pool"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["video", "both", "turned"])
def test_both_layouts_agree_when_pruned(plain, hub, method, name):
    settings = {"method": method, "tokens": 128}
    row, images = inputs(name)
    ids, given = torch.tensor([row]), video_models.to_hub([row], images)
    new = dict(do_sample=False, max_new_tokens=3)
    with visiondrop.apply(plain, **settings, report=True) as handle:
        found, own = logits(plain, [row], images), plain.generate(ids, images=images, **new)
        lengths = sorted(handle.report.tokens_per_layer)
    with visiondrop.apply(hub, **settings, report=True) as handle:
        expected = hub(**given).logits[:, -1, : -video_models.EXTRA]
        tokens = hub.generate(**given, **new)[:, given["input_ids"].shape[1] :]
        assert sorted(handle.report.tokens_per_layer) == lengths
    assert (found - expected).abs().max() <= 1e-5 and own.tolist() == tokens.tolist()


@pytest.mark.parametrize("name", ["video", "both"])
def test_visiondrop_equals_a_dense_reference(native, name):
    row, images = inputs(name)
    if name == "both":
        row, images = row[:5] + row[6:], images[1:]  # the dense reference has one visual block
    at = row.index(-200)
    with visiondrop.apply(native, tokens=BUDGET, report=True) as handle:
        found = logits(native, [row], images)[0]
        report = handle.report
    # n_0 = 8 x 24 = 192; times 0.25308, rounded; the last takes what makes the mean 64.
    counts = [192, 49, 12, 3]
    assert report.tokens_per_layer[0] == [n for n in counts for _ in range(2)]
    split = [(7 * n // 8, n - 7 * n // 8) for n in counts[1:]]
    clip = native.get_video_tower().clip
    reduced = dense_reference.encoder_stage(clip, images[0].transpose(0, 1), 3, 21, 3)
    visual = native.model.mm_projector(torch.cat([states for states, *_ in reduced]))
    after = row[at + video_models.FRAMES :]
    expected = dense_reference.decode(native, row[:at], visual, after, dict(zip((2, 4, 6), split)))
    assert (found - expected).abs().max() <= 1e-5
    kept = report.stages[0].kept()
    assert kept[:24][0] == -1 and (kept[:24] < 64).all() and kept[24] == -2  # frame after frame, each with its [CLS]


def test_budget_256_of_the_paper():
    video = VisualShape(patches=256, units=8, nominal_units=8, length=8 * 257, kind="video", source="video")
    plan = visiondrop.plan("visiondrop", 256, shape=video)
    assert plan.counts == [768, 194, 49, 13] and plan.ledger().mean == 256
    assert (plan.encoder.dominant, plan.encoder.contextual) == (84, 12)
    assert [(s.dominant, s.contextual) for s in plan.stages] == [(169, 25), (42, 7), (11, 2)]
    plan = visiondrop.plan("visionzip", 256, shape=video)
    assert (plan.encoder.dominant, plan.encoder.contextual) == (27, 5)


@pytest.mark.parametrize(
    "settings", [{"tokens": BUDGET}, {"method": "fastv", "tokens": 128}, {"method": "random", "tokens": 64}]
)
def test_a_batch_equals_singles(native, settings):
    cases = [inputs("video"), inputs("both"), inputs("image")]
    rows, images = [row for row, _ in cases], [i for _, images in cases for i in images]
    with visiondrop.apply(native, **settings):
        together = logits(native, rows, images)
        for i, (row, own) in enumerate(cases):
            assert (together[i] - logits(native, [row], own)[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("settings", [{"tokens": BUDGET}, {"method": "fastv", "tokens": 128}])
@pytest.mark.parametrize("name", ["video", "turned"])
def test_cached_decoding_equals_one_pass(native, settings, name):
    row, images = inputs(name)
    with visiondrop.apply(native, **settings):
        new = native.generate(
            torch.tensor([row]),
            images=images,
            do_sample=False,
            max_new_tokens=4,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for step in range(1, 4):
            again = logits(native, [row + new.sequences[0, :step].tolist()], images)
            assert (again[0] - new.logits[step][0]).abs().max() <= 1e-5


def test_beams_and_a_second_turn(native, hub, plain):
    row, images = inputs("both")
    ids, given = torch.tensor([row]), video_models.to_hub([row], images)
    settings = dict(do_sample=False, max_new_tokens=3)
    with visiondrop.apply(plain, tokens=BUDGET), visiondrop.apply(hub, tokens=BUDGET):
        beams = plain.generate(ids, images=images, num_beams=3, **settings)
        assert (
            beams.tolist() == hub.generate(**given, num_beams=3, **settings)[:, given["input_ids"].shape[1] :].tolist()
        )
        uncached = hub.generate(**given, use_cache=False, **settings)[:, given["input_ids"].shape[1] :]
        assert uncached.tolist() == plain.generate(ids, images=images, **settings).tolist()
    with visiondrop.apply(native, tokens=BUDGET):
        first = native.generate(ids, images=images, return_dict_in_generate=True, **settings)
        longer = torch.tensor([row + first.sequences[0].tolist() + [7, 8, 9]])
        again = native.generate(longer, past_key_values=first.past_key_values, **settings)
        assert again.tolist() == native.generate(longer, images=images, **settings).tolist()


def test_what_does_not_fit_is_refused_in_a_sentence(native):
    row, images = inputs("video")
    with pytest.raises(VisionDropError, match="8 per video"):
        logits(native, [row], [*images, *images])
    with pytest.raises(VisionDropError, match="side by side"):
        logits(native, [row[:12] + [5] + row[12:]], images)
    with pytest.raises(VisionDropError, match=r"videos \[3, 8, H, W\]"):
        logits(native, [row], [images[0][:, :4]])


def test_ledger_counts_temporal_attention(native, plain):
    with visiondrop.apply(native, tokens=BUDGET) as handle:
        assert handle.dims.temporal and handle.ledger.as_dict()["layout"] == "video"
        assert "visual tokens (video)," in str(handle.ledger)
        with_time = handle.ledger.flops
    with visiondrop.apply(plain, tokens=BUDGET) as handle:
        assert handle.ledger.flops < with_time
        assert handle.ledger.as_dict()["layout"] == "video-without-temporal-attention"
        assert "visual tokens (video-without-temporal-attention)," in str(handle.ledger)


def test_the_hub_conversion_is_named_a_different_model(hub):
    with pytest.warns(UserWarning, match="different model"):
        visiondrop.apply(hub, tokens=BUDGET).remove()
