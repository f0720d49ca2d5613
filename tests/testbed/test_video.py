"""The video sibling: clips and sets are fixed, trainer and loader agree, training runs in miniature."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.results import fingerprint
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.video import load_video, read_frames, video_prompt
from testbed.data.tokenizer import SUFFIX
from testbed.training.batches import Stage
from testbed.training.losses import answer_states
from testbed.training.model import TOWER, Sizes
from testbed.training.train import Trainer, load_recipe
from testbed.video import sets
from testbed.video.card import VIDEO
from testbed.video.course import COURSE, clip_patches, normalised
from testbed.video.export import TOWER_FOLDER
from testbed.video.files import write_clip
from testbed.video.questions import KINDS, candidates, draw_question
from testbed.video.scenes import FRAMES, PATCHES, ROLES, TOKENS, clip_rng, draw_clip
from testbed.video.tokenizer import CONTEXT, IDS, VOCABULARY, build_tokenizer, question_ids
from testbed.video.tower import encode_video
from visiondrop.errors import VisionDropError

TINY = {
    "vision_width": 32,
    "vision_layers": 3,
    "vision_heads": 2,
    "vision_mlp": 64,
    "width": 32,
    "layers": 3,
    "heads": 2,
    "mlp": 48,
    "vocabulary": len(VOCABULARY),
}
SIZES = Sizes(**TINY)


@pytest.fixture(scope="module")
def clips():
    """Twenty clips of the test split."""
    return [draw_clip("test", index) for index in range(20)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of a random small model whose weights are exact in float16, and those weights, over time included."""
    weights = COURSE.new_weights(SIZES, 3)
    generator = torch.Generator().manual_seed(9)
    for name, value in weights.items():
        if "temporal" in name and "norm" not in name:
            value = torch.randn(value.shape, generator=generator) * 0.2
        weights[name] = value.half().float()
    folder = tmp_path_factory.mktemp("video") / "checkpoint"
    COURSE.export(weights, SIZES, folder)
    return folder, weights


def prompt_ids(question, tokenizer):
    conversation = conv_templates["llava_v1"].copy()
    conversation.append_message(conversation.roles[0], video_prompt(question))
    conversation.append_message(conversation.roles[1], None)
    return tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]


def test_the_sets_are_the_committed_ones():
    known = json.loads(Path(sets.__file__).with_name("digests.json").read_text())
    assert sets.digest("quick") == known["quick"]


def test_splits_share_no_clip_and_no_background():
    corners = [draw_clip(split, 0).frames[0, :8, :8] for split in ("train", "validation", "test")]
    assert len({corner.tobytes() for corner in corners}) == 3
    assert (draw_clip("test", 4).frames == draw_clip("test", 4).frames).all()
    with pytest.raises(VisionDropError, match="use one of train, validation, test"):
        draw_clip("tests", 0)


def test_labels_say_what_the_pixels_show(clips):
    for clip in clips:
        assert 2 <= len(clip.actors) <= 5 and len({actor.color for actor in clip.actors}) == len(clip.actors)
        for number, actor in enumerate(clip.actors):
            mask = clip.labels.actors == number
            assert (clip.labels.roles[mask] == ROLES.index(actor.role)).all()
            frames = mask.any(1)
            assert frames.tolist() == [actor.role != "appears" or frame in actor.event for frame in range(FRAMES)]
            if actor.role != "appears":
                assert (mask[0] != mask[-1]).any() == (actor.role == "moves")
            if actor.role == "changes":
                x, y = actor.path[0]
                other = [(frame[y, x] != clip.frames[0][y, x]).any() for frame in clip.frames]
                assert other == [frame in actor.event for frame in range(FRAMES)]


def test_questions_have_one_answer_and_are_made_of_known_words(clips):
    tokenizer = build_tokenizer()
    for clip in clips:
        for kind in KINDS:
            for question in candidates(kind, clip):
                ids = question_ids(question.text)
                assert tokenizer(question.text + " ASSISTANT:").input_ids[1:] == ids and ids[-1:] == list(SUFFIX)
                assert question.answer in IDS
                same = {other.answer for other in candidates(kind, clip) if other.text == question.text}
                assert len(same) == 1
                [[number]] = question.things
                actor = clip.actors[number]
                assert question.answer in (actor.color, actor.shape, actor.other)
                assert kind not in ROLES or actor.role == kind


def test_a_written_clip_is_decoded_to_its_very_pixels(clips, tmp_path):
    write_clip(tmp_path / "clip.mp4", clips[0].frames)
    assert (read_frames(str(tmp_path / "clip.mp4")) == clips[0].frames).all()
    pixels = load_video(str(tmp_path / "clip.mp4"))
    patches = clip_patches(clips[0].frames, np.arange(PATCHES))
    mine = normalised(torch.from_numpy(patches), torch.float32).view(FRAMES, 16, 16, 3, 14, 14)
    assert torch.allclose(mine.permute(3, 0, 1, 4, 2, 5).reshape(3, FRAMES, 224, 224), pixels, atol=1e-6)


@torch.no_grad()
def test_the_loader_gives_the_trainers_logits(exported, tmp_path):
    folder, weights = exported
    clip = draw_clip("validation", 2)
    asked = [draw_question(kind, clip, clip_rng("validation", 2, 1)) for kind in ("moves", "shape")]
    assert None not in asked
    batch = COURSE.whole([clip], [asked])
    states, _ = answer_states(weights, SIZES, COURSE.views.encode(weights, SIZES, batch).tokens, batch)
    mine = states.gather(2, batch.answer_at[..., None, None].expand(-1, -1, 1, SIZES.width))[0, :, 0]
    tokenizer, model, _, context = load_pretrained_model(
        str(folder), None, "testbed-video", device_map="cpu", torch_dtype=torch.float32
    )
    assert context >= TOKENS and model.visual_shape().length == TOKENS
    write_clip(tmp_path / "clip.mp4", clip.frames)
    video = load_video(str(tmp_path / "clip.mp4"))
    for number, question in enumerate(asked):
        real = model(input_ids=prompt_ids(question.text, tokenizer), images=[video]).logits[0, -1]
        assert torch.allclose(mine[number] @ weights["lm_head.weight"].T, real, atol=1e-3)


@torch.no_grad()
def test_attention_over_time_starts_as_the_identity_and_then_matters(exported):
    _, weights = exported
    fresh = COURSE.new_weights(SIZES, 3)
    clip = draw_clip("validation", 2)
    batch = COURSE.whole([clip], [[draw_question("shape", clip, clip_rng("validation", 2, 1))]])
    patches = normalised(batch.pixels, torch.float32)
    for some, alike in ((fresh, True), (weights, False)):
        whole, _ = encode_video(some, SIZES, patches, batch.cells)
        still, _ = encode_video(some, SIZES, patches[:, 3:4].expand(-1, FRAMES, -1, -1), batch.cells)
        assert torch.allclose(whole[:, 3], still[:, 3], atol=1e-5) == alike


def test_a_thinned_out_batch_keeps_positions_and_objects():
    mix = dict.fromkeys(KINDS, 1.0)
    stage = Stage("thin", 16, 1, 2, questions=3, mix=mix, places=80, sparse=1, fewest=330, most=350)
    batch, again = COURSE.batches(stage, 0)[0], COURSE.batches(stage, 0)[0]
    assert all(torch.equal(a, b) for a, b in zip(vars(batch).values(), vars(again).values()) if torch.is_tensor(a))
    assert all(torch.equal(value, again.labels[name]) for name, value in batch.labels.items())
    assert batch.cells.shape == (2, 80) and 330 <= batch.kept.shape[1] <= 350
    frame, row = batch.kept // 81, batch.kept % 81
    cell = torch.where(row > 0, 1 + batch.cells.gather(1, (row - 1).clamp(min=0)), 0)
    assert torch.equal(batch.visual_positions, 3 + frame * 257 + cell)
    shown = torch.cat([torch.zeros(2, FRAMES, 1, dtype=torch.bool), batch.labels["role"] < len(ROLES)], 2).flatten(1)
    kept_shown = shown.gather(1, batch.kept).sum(1)
    assert (kept_shown > 0.8 * shown.sum(1)).all() and (kept_shown < batch.kept.shape[1]).all()


def test_a_miniature_trains_and_writes_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("testbed.video.course.COURSE", replace(COURSE, validation_scenes=1))
    monkeypatch.setattr("testbed.training.train.LOG_EVERY", 2)
    common = {"grid": 16, "batch": 2, "warmup": 1, "rate": 3e-3, "end_rate": 3e-3}
    mix = dict.fromkeys(KINDS, 1.0)
    time = {"name": "time", "steps": 12, "places": 80}
    sparse = {"name": "sparse", "steps": 2, "places": 80, "sparse": 1, "fewest": 224, "most": 230}
    sparse |= {"questions": 4, "mix": mix}
    recipe = {"seed": 1, "course": "video", "sizes": TINY, "stages": [time | common, sparse | common]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    trainer = Trainer(load_recipe(tmp_path / "recipe.yaml"), tmp_path, torch.device("cpu"), torch.float32, workers=0)
    with torch.enable_grad():
        assert trainer.run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    tower = [row["loss"] for row in rows if row["stage"] == "time"]
    assert tower[-1] < tower[0]
    assert set(KINDS) <= set(rows[-1]) and rows[-1]["what"] == "validation"
    assert trainer.weights[f"{TOWER}encoder.layers.0.temporal_attn.out_proj.weight"].abs().max() > 0


def test_the_written_folder_is_an_original_video_llava(exported):
    folder, _ = exported
    config = json.loads((folder / "config.json").read_text())
    assert config["mm_video_tower"] == config["mm_image_tower"] == TOWER_FOLDER
    assert config["max_position_embeddings"] == CONTEXT > TOKENS
    assert json.loads((folder / TOWER_FOLDER / "config.json").read_text())["vision_config"]["add_time_attn"]


def test_the_card_says_what_the_committed_rows_say_about_one_small_checkpoint():
    assert VIDEO.main(["--check"]) == 0
    folder = VIDEO.card.parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8_000_000
    checkpoint = fingerprint.checkpoint(str(folder)).fingerprint
    assert {row["model_fingerprint"] for row in VIDEO.rows()} == {checkpoint}


def test_the_committed_checkpoint_answers_about_new_clips(tmp_path, caplog):
    """Eight clips that no set and no training step uses, through the ordinary loader; a guess is right once in six."""
    tokenizer, model, _, _ = load_pretrained_model(
        str(VIDEO.card.parent), None, "testbed-video", device_map="cpu", torch_dtype=torch.float32
    )
    assert "temporal" not in caplog.text
    right = asked = 0
    for index in range(5000, 5008):
        clip = draw_clip("validation", index)
        question = draw_question(
            ("moves", "appears", "color", "shape")[index % 4], clip, clip_rng("validation", index, 1)
        )
        if question is None:
            continue
        write_clip(tmp_path / "clip.mp4", clip.frames)
        video = load_video(str(tmp_path / "clip.mp4"))
        said = model.generate(prompt_ids(question.text, tokenizer), images=[video], max_new_tokens=3, do_sample=False)
        right += tokenizer.decode(said[0], skip_special_tokens=True).strip().lower() == question.answer
        asked += 1
    assert asked >= 6 and right >= asked - 1
