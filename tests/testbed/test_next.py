"""The NeXT-style sibling: scenes and sets are fixed, training sees what the loader sees, a miniature trains."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava.anyres import layout_name
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from testbed.cards.sibling_card import rival
from testbed.data.questions import draw_question
from testbed.data.scenes import NO_COLOR, PATCH
from testbed.data.tokenizer import PREFIX
from testbed.next import sets
from testbed.next.card import CARD
from testbed.next.course import COURSE
from testbed.next.scenes import CROP, SIDE, draw_scene, scene_rng
from testbed.next.views import ORDER, TOKENS, cut, line_up
from testbed.training.batches import Stage, normalise
from testbed.training.model import Layout, Sizes, decode
from testbed.training.train import Trainer, load_recipe
from visiondrop.errors import VisionDropError

SIZES = Sizes(vision_width=32, vision_layers=3, vision_heads=2, vision_mlp=64, width=32, layers=3, heads=2, mlp=48)


@pytest.fixture(scope="module")
def scenes():
    """A dozen scenes of the test split."""
    return [draw_scene("test", index) for index in range(12)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of a random small model whose weights are exact in float16, and those weights."""
    weights = {name: value.half().float() for name, value in COURSE.new_weights(SIZES, 3).items()}
    folder = tmp_path_factory.mktemp("next") / "checkpoint"
    COURSE.export(weights, SIZES, folder)
    return folder, weights


def test_a_scene_is_a_function_of_split_and_index_and_splits_share_no_background(scenes):
    np.testing.assert_array_equal(draw_scene("test", 3).image, scenes[3].image)
    assert draw_scene("test", 3).things == scenes[3].things
    corners = {draw_scene(split, 0).image[:40, :40].tobytes() for split in ("train", "validation", "test")}
    assert len(corners) == 3
    with pytest.raises(VisionDropError, match="use one of train, validation, test"):
        draw_scene("dev", 0)


def test_the_quick_set_is_the_committed_one_and_balanced():
    committed = json.loads((Path(sets.__file__).parent / "digests.json").read_text())
    assert sets.digest("quick") == committed["quick"]
    kinds = [question.kind for _, _, asked in sets.draw_set("quick") for question in asked]
    assert {kind: kinds.count(kind) for kind in sets.KINDS} == dict.fromkeys(sets.KINDS, 96 // len(sets.KINDS))
    assert {spec.split for name, spec in sets.SETS.items() if name != "validation"} == {"test"}


def test_no_object_crosses_the_border_between_crops(scenes):
    for scene in scenes:
        assert scene.image.shape == (SIDE, SIDE, 3) and len(scene.things) >= 4
        for thing in scene.things:
            reach = thing.side / 2 + 1  # a star's tips stand out a little
            for place in (thing.x, thing.y):
                assert reach <= place % CROP <= CROP - reach


def test_labels_stand_where_the_tokens_of_the_objects_stand(scenes):
    """The colour of an object is in the pixels of exactly those (view, patch) pairs that ORDER names."""
    for scene in scenes[:4]:
        views = cut(scene.image)
        for token in np.flatnonzero(scene.labels.things >= 0):
            view, patch = divmod(int(ORDER[token]), 576)
            thing = scene.things[scene.labels.things[token]]
            y, x = (PATCH * (patch // 24) + PATCH / 2, PATCH * (patch % 24) + PATCH / 2)
            if view == 0:
                y, x = 2 * y, 2 * x
            else:
                y, x = y + CROP * ((view - 1) // 2), x + CROP * ((view - 1) % 2)
            reach = thing.side / 2 * 1.1 + (2 * PATCH if view == 0 else PATCH)
            assert max(abs(y - thing.y), abs(x - thing.x)) <= reach
        own = views[1 + scene.things[0].y // CROP * 2 + scene.things[0].x // CROP]
        thing = scene.things[0]
        np.testing.assert_array_equal(own[:, thing.y % CROP, thing.x % CROP], scene.image[thing.y, thing.x])


def test_tokens_are_lined_up_as_base_view_and_canvas():
    rows = torch.arange(2 * TOKENS).view(10, 576, 1)
    lined = line_up(rows)
    assert lined.shape == (2, TOKENS, 1) and torch.equal(lined[0, :576, 0], torch.arange(576))
    canvas = lined[1, 576:, 0].view(48, 48) - TOKENS
    assert canvas[0, 24] == 2 * 576 and canvas[24, 0] == 3 * 576 and canvas[47, 47] == TOKENS - 1


def test_training_and_the_ordinary_loader_give_the_same_logits(exported):
    folder, weights = exported
    scene = draw_scene("validation", 5)
    rng = scene_rng("validation", 5, 1)
    questions = [draw_question(kind, scene, rng) for kind in ("exist", "digit")]
    batch = COURSE.whole([scene], [questions])
    features = COURSE.views.encode(weights, SIZES, batch).tokens
    layout = Layout(torch.tensor(PREFIX), batch.question_ids, batch.visual_positions, batch.question_start)
    states, _ = decode(weights, SIZES, features, layout)
    tokenizer, model, processor, _ = load_pretrained_model(
        str(folder), None, "llava-v1.6-testbed", device_map="cpu", torch_dtype=torch.float32
    )
    assert layout_name(model.config) == "fixed-2880"
    image = Image.fromarray(scene.image)
    pixels = process_images([image], processor, model.config)
    torch.testing.assert_close(pixels[0].float(), normalise(batch.pixels, torch.float32), atol=1e-5, rtol=1e-5)
    for number, question in enumerate(questions):
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], f"<image>\n{question.text}")
        conversation.append_message(conversation.roles[1], None)
        ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        got = model(input_ids=ids[None], images=pixels, image_sizes=[image.size]).logits[0, -1]
        expected = states[0, number, batch.answer_at[0, number]] @ weights["lm_head.weight"].T
        assert got.std() > 0.1
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_the_layout_is_that_of_llava_1_6(exported):
    folder, _ = exported
    config = json.loads((folder / "config.json").read_text())
    assert config["image_aspect_ratio"] == "anyres" and config["image_grid_pinpoints"] == [[SIDE, SIDE]]
    assert sorted(path.name for path in (folder / "vision_tower").iterdir()) == [
        "config.json",
        "preprocessor_config.json",
    ]


def test_batches_are_a_function_of_stage_and_step():
    stage = Stage("x", 24, 5, 2, questions=3, mix={"exist": 1, "hop2": 1}, sparse=1.0, fewest=200, most=400)
    first, again, other = COURSE.batches(stage, 1)[2], COURSE.batches(stage, 1)[2], COURSE.batches(stage, 2)[2]
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.kept, again.kept)
    assert not torch.equal(first.pixels, other.pixels)
    assert 200 <= first.kept.shape[1] <= 400 and bool((first.kept.diff(dim=1) > 0).all())
    shown = first.labels["color"].gather(1, first.kept) != NO_COLOR
    assert (shown.sum(1) > 0.75 * (first.labels["color"] != NO_COLOR).sum(1)).all()
    views = COURSE.batches(Stage("views", 24, 5, 2), 0)[0]
    assert views.pixels.shape == (4, 3, 336, 336) and views.labels["color"].shape == (4, 576)


def test_a_miniature_trains_and_its_checkpoint_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("testbed.next.course.COURSE", replace(COURSE, validation_scenes=2))
    recipe = tmp_path / "recipe.yaml"
    sizes = json.dumps({k: v for k, v in SIZES.as_dict().items() if k not in ("vocabulary", "rope_theta", "epsilon")})
    recipe.write_text(f"""
seed: 1
course: next
sizes: {sizes}
stages:
  - {{name: views, grid: 24, steps: 6, batch: 1, rate: 3.0e-3, end_rate: 3.0e-3, warmup: 1}}
  - {{name: sparse, grid: 24, steps: 1, batch: 1, questions: 3, mix: {{exist: 1}}, sparse: 1, frozen: true, warmup: 1}}
""")
    trainer = Trainer(load_recipe(recipe), tmp_path / "run", torch.device("cpu"), torch.float32, workers=0)
    tower = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    with torch.enable_grad():
        begun = trainer.weights[tower].detach().clone()
        assert trainer.run()
    assert not torch.equal(trainer.weights[tower], begun)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {line["what"] for line in lines} == {"train", "validation"}
    trainer.course.export(trainer.weights, trainer.recipe.sizes, tmp_path / "out")
    load_pretrained_model(str(tmp_path / "out"), None, "next", device_map="cpu", torch_dtype=torch.float32)


def test_the_card_says_what_the_committed_rows_say_about_one_small_checkpoint():
    assert CARD.main(["--check"]) == 0
    folder = CARD.card.parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8_000_000
    assert len({row["model_fingerprint"] for row in CARD.rows()}) == 1


def test_pairs_need_the_answers_and_leave_what_is_committed(tmp_path, capsys):
    before = (CARD.training / "paired.jsonl").read_bytes()
    assert CARD.main(["--pairs", str(tmp_path)]) == 2
    assert "holds no whole run" in capsys.readouterr().err
    assert (CARD.training / "paired.jsonl").read_bytes() == before


def test_every_run_is_paired_with_none_and_visiondrop_with_its_rivals():
    committed = [json.loads(line) for line in (CARD.training / "paired.jsonl").read_text().splitlines()]
    rows = {row["checksum"]: row for row in CARD.rows()}
    (none,) = [mark for mark, row in rows.items() if row["method"] == "none"]
    against = {tuple(pair["rows"]) for pair in committed}
    assert {(mark, none) for mark in rows if mark != none} <= against
    others = [[rows[mark] for mark in pair] for pair in against if pair[1] != none]
    assert others and all(a["method"] == "visiondrop" and a["tokens"] == b["tokens"] and rival(b) for a, b in others)
