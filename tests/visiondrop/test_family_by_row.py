"""A family that is not in the table, served by a row alone (Qianfan-OCR: InternVL's way from patches to tokens)."""

import pytest
import torch
import transformers

import visiondrop
from tests.support import hub_families as tiny
from visiondrop.errors import VisionDropError
from visiondrop.families import registry, serve
from visiondrop.families.table import FAMILIES, Family

if not hasattr(transformers, "QianfanOCRForConditionalGeneration"):
    pytest.skip("this transformers has no Qianfan-OCR", allow_module_level=True)

ROW = Family(
    "Qianfan-OCR",
    ("QianfanOCRForConditionalGeneration",),
    "shuffle",
    tower="vision_tower",
    layers="layers",
    attention="attention",
    runs=True,
    videos=False,
    tuned=False,
)


@pytest.fixture(scope="module")
def model():
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
    )
    config = transformers.QianfanOCRConfig(
        text_config={**tiny.TEXT, "model_type": "qwen3", "head_dim": 16},
        vision_config=vision,
        image_token_id=tiny.IMAGE,
        image_seq_length=4,
    )
    torch.manual_seed(3)
    out = transformers.QianfanOCRForConditionalGeneration(config).eval()
    with torch.no_grad():
        for value in out.parameters():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape) / value.shape[-1] ** 0.5)
    out.generation_config.eos_token_id = None
    out.generation_config.suppress_tokens = [tiny.IMAGE]
    return out


def prompt(*seeds: int) -> dict:
    parts = [part for seed in seeds for part in (tiny.picture("internvl", seed), tiny.text(seed, 4))]
    return tiny.inputs("internvl", [[tiny.text(9, 3), *parts]])


def test_a_row_is_all_a_family_needs(model, monkeypatch):
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))
    with pytest.raises(VisionDropError, match="no adapter"):
        visiondrop.apply(model, "visiondrop", "50%")
    assert ROW not in FAMILIES
    serve(ROW)
    one = prompt(1)
    with torch.no_grad():
        stock = model(**one).logits
        with visiondrop.apply(model, "none"):
            assert torch.equal(model(**one).logits, stock)
        for method, tokens in (("visiondrop", "50%"), ("vispruner", "50%"), ("divprune", "50%"), ("fastv", "60%")):
            with visiondrop.apply(model, method, tokens):
                for given in (one, prompt(2, 3)):
                    out = model.generate(
                        **given, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
                    )
                    whole = {**given, "input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences)}
                    logits = model(**whole, use_cache=False).logits
                    assert logits.shape[1] < out.sequences.shape[1]
                    for step, found in enumerate(out.logits):
                        assert (logits[:, step - 5] - found).abs().max() <= 2e-5
        assert torch.equal(model(**one).logits, stock)
