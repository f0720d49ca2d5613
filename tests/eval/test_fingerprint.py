"""The identity of a checkpoint: what can change an answer is in it, the model card is not."""

import pytest

from eval.results import fingerprint


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tower").mkdir()
    for name, text in (("config.json", "{}"), ("model.bin", "abc"), ("tower/config.json", "{}"), ("README.md", "card")):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_model_card_is_no_part_of_the_checkpoint(folder):
    before = fingerprint.checkpoint(str(folder)).fingerprint
    (folder / "README.md").write_text("another card")
    (folder / "tower" / "NOTES.md").write_text("new")
    assert fingerprint.checkpoint(str(folder)).fingerprint == before


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tower/config.json", "new.json"])
def test_every_other_file_is(folder, name):
    before = fingerprint.checkpoint(str(folder)).fingerprint
    (folder / name).write_text('{"a": 1}')
    assert fingerprint.checkpoint(str(folder)).fingerprint != before


def test_a_data_folder_is_hashed_whole(folder):
    before = fingerprint.of_folder(folder)
    (folder / "README.md").write_text("tells datasets which files there are")
    assert fingerprint.of_folder(folder) != before
