"""Missing, half-downloaded, damaged and unsupported checkpoints: one sentence with the fix, never a random weight."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import TEXT, save_weights, write_original
from tests.support.loading import LAYERS, edit, load, refuses
from visiondrop.errors import VisionDropError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A read-only original checkpoint."""
    return write_original(tmp_path_factory.mktemp("original"), LAYERS)


@pytest.fixture
def copy(written, tmp_path):
    """The same checkpoint and its tower, free to be damaged."""
    shutil.copytree(written.parent, tmp_path / "copy")
    return tmp_path / "copy" / written.name


def drop(path, *names):
    tensors = load_file(path)
    for name in names:
        del tensors[name]
    save_file(tensors, path)


def test_missing_folder(tmp_path):
    refuses(["'/no/such/folder'", "hub id"], lambda: load("/no/such/folder"))
    (tmp_path / "model.safetensors").write_bytes(b"")
    refuses(["is a file"], lambda: load(tmp_path / "model.safetensors"))
    refuses(["config.json"], lambda: load(tmp_path))


def test_without_a_network(monkeypatch, tmp_path, copy):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    refuses(["'liuhaotian/llava-v1.5-7b'", "path of that folder"], lambda: load("liuhaotian/llava-v1.5-7b"))
    edit(copy / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336")
    refuses(["mm_vision_tower", "'openai/clip-vit-large-patch14-336'"], lambda: load(copy))


def test_hub_id_is_fetched_in_one_format(monkeypatch, tmp_path):
    """A stand-in for the hub that copies what the patterns ask for: safetensors alone where there are both formats."""
    import huggingface_hub

    repository = write_original(tmp_path / "hub", LAYERS, tower="inside", weights="sharded")
    save_weights(repository, {"unused": torch.ones(1)}, "bin")
    edit(repository / "config.json", mm_vision_tower=str(repository.parent / "clip-golden"))
    snapshot = tmp_path / "snapshot"

    def fetch(hub_id, allow_patterns):
        assert hub_id == "someone/llava"
        snapshot.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for path in repository.glob(pattern):
                shutil.copy(path, snapshot)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    load("someone/llava")
    assert not list(snapshot.glob("*.bin"))


def test_no_weights_and_half_downloads(copy):
    (copy / "model.safetensors").unlink()
    refuses(["no weights", "model.safetensors"], lambda: load(copy))
    cache = copy / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "abc.incomplete").write_bytes(b"")
    refuses(["half-downloaded", "abc.incomplete"], lambda: load(copy))


@pytest.mark.parametrize(
    "weights, stem", [("sharded", "model-00002-of-00003.safetensors"), ("bin", "pytorch_model-00002-of-00003.bin")]
)
def test_absent_and_damaged_shards(tmp_path, weights, stem):
    path = write_original(tmp_path, LAYERS, weights=weights)
    shard, content = path / stem, (path / stem).read_bytes()
    for damaged, words in (
        (content[: len(content) // 2], [stem, "download it again"]),
        (content[:20], [stem, "download it again"]),
        (b"", [stem, "download it again"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", [stem, "git lfs pull"]),
    ):
        shard.write_bytes(damaged)
        refuses(words, lambda: load(path))
    shard.unlink()
    refuses(["half-downloaded", stem, "1 are missing"], lambda: load(path))
    index = next(path.glob("*.index.json"))
    kept = index.read_text()
    index.unlink()
    refuses(["half-downloaded", "2 of 3"], lambda: load(path))
    shard.write_bytes(content)
    load(path)  # all shards without an index are enough
    index.write_text(kept[:50])
    refuses([index.name], lambda: load(path))


def test_pickles_with_code_are_not_loaded(copy):
    (copy / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Path("/")}, copy / "pytorch_model.bin")
    refuses(["pytorch_model.bin", "safety"], lambda: load(copy))
    torch.save([torch.ones(1)], copy / "pytorch_model.bin")
    refuses(["pytorch_model.bin", "dictionary"], lambda: load(copy))


def test_incomplete_weights_are_never_filled_in(copy):
    drop(copy / "model.safetensors", "model.layers.1.mlp.up_proj.weight", "model.mm_projector.2.bias")
    refuses(["lack 2 of", "model.layers.1.mlp.up_proj.weight", "model.mm_projector.2.bias"], lambda: load(copy))


def test_incomplete_tower(copy):
    drop(copy.parent / "clip-golden" / "model.safetensors", "vision_model.pre_layrnorm.weight")
    refuses(["lack 1 of", "pre_layrnorm.weight"], lambda: load(copy))


def test_config_of_another_model(copy):
    edit(copy / "config.json", intermediate_size=64)
    refuses(["shape", "mlp.", "(64, 128)"], lambda: load(copy))
    edit(copy / "config.json", intermediate_size=TEXT["intermediate_size"], num_hidden_layers=3)
    refuses(["lack 9 of", "model.layers.2."], lambda: load(copy))


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(model_type="llava_mpt"), ["'llava_mpt'", "'llava'"]),
        (dict(model_type="llava_onevision"), ["'llava_onevision'", "'llava_next'"]),
        (dict(model_type=None), ["None"]),
        (dict(mm_vision_tower=None), ["mm_vision_tower"]),
        (dict(mm_vision_tower="./gone"), ["'./gone'", "mm_vision_tower"]),
        (dict(mm_use_im_start_end=True), ["<im_start>"]),
        (dict(mm_projector_type="qformer"), ["'qformer'", "mlp2x_gelu"]),
        (dict(text_config={"model_type": "mistral"}), ["'mistral'", "'llama'"]),
        (dict(text_config={}, vision_feature_layer=[-2, -5]), ["projector"]),
    ],
)
def test_unsupported_models(copy, fields, words):
    edit(copy / "config.json", **fields)
    with pytest.raises(VisionDropError) as caught:
        load(copy)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_other_towers_are_refused(copy):
    edit(copy.parent / "clip-golden" / "config.json", model_type="siglip_vision_model")
    refuses(["'siglip_vision_model'", "'clip'"], lambda: load(copy))


def test_damaged_settings(copy):
    for path in (
        copy / "config.json",
        copy / "tokenizer_config.json",
        copy / "generation_config.json",
        copy.parent / "clip-golden" / "preprocessor_config.json",
    ):
        kept = path.read_text()
        path.write_text(kept[: len(kept) // 2])
        refuses([path.name], lambda: load(copy))
        path.write_text(kept)
    (copy / "tokenizer.model").unlink()
    refuses(["tokenizer.model"], lambda: load(copy))
