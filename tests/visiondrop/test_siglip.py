"""Towers without [CLS]: a small LLaVA on SigLIP, whose encoder stage scores by the attention that patches receive."""

import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

import visiondrop
from tests.support import dense_reference, models

PATCHES, LAYERS = 64, 8


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=112, patch_size=14
    )
    text = LlamaConfig(**models.text_settings(LAYERS, vocab_size=models.HUB_IMAGE_ID + 1))
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=models.HUB_IMAGE_ID,
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for name, value in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            value.mul_(3)  # attention that prefers something
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [models.HUB_IMAGE_ID]
    return model


@pytest.fixture(scope="module")
def inputs():
    ids = torch.tensor([models.to_hub(models.prompt(), PATCHES)])
    return {"input_ids": ids, "pixel_values": models.pixels(0)[:, :, ::3, ::3].contiguous()}


def tower(model):
    inner = model.model.vision_tower
    return getattr(inner, "vision_model", inner)


def test_pruning_off_is_the_stock_model(model, inputs):
    stock = model(**inputs).logits
    with visiondrop.apply(model, method="none"):
        assert torch.equal(model(**inputs).logits, stock)
    with visiondrop.apply(model, tokens=16):
        assert (model(**inputs).logits[:, -1] - stock[:, -1]).abs().max() > 1e-4


def test_encoder_stage_scores_by_mean_received_attention(model, inputs):
    clip = tower(model)
    hidden = clip.embeddings(inputs["pixel_values"])[0]
    for layer in clip.encoder.layers[:3]:
        out, weights, keys = dense_reference.attention_map(layer.self_attn, layer.layer_norm1(hidden))
        hidden = hidden + out
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    score = [float(weights[:, :, j].mean()) for j in range(PATCHES)]
    # Budget 16: 24 tokens after the encoder, of which 7/8 dominant, and no [CLS] among them.
    states, kept, references = dense_reference.reduce(hidden, score, keys.mean(dim=0), 21, 3, [])
    with visiondrop.apply(model, tokens=16, report=True) as handle:
        model(**inputs)
        stage = handle.report.stages[0]
        assert handle.dims.cls == 0 and not handle.plan.shape.cls
    assert stage.dominant[0].tolist() == kept and stage.reference[0].tolist() == references
    assert (stage.hidden[0] - states).abs().max() <= 1e-5
    assert (stage.scores[0] - torch.tensor(score)).abs().max() <= 1e-6


@pytest.mark.parametrize("method", ["visiondrop", "visionzip", "vispruner", "fastv", "uniform"])
def test_every_kind_of_method_decodes_the_same_with_and_without_a_cache(model, inputs, method):
    with visiondrop.apply(model, method=method, tokens=16):
        settings = dict(**inputs, do_sample=False, max_new_tokens=4)
        cached = model.generate(**settings)
        assert cached.tolist() == model.generate(**settings, use_cache=False).tolist()


def test_a_batch_equals_singles(model, inputs):
    rows = [models.to_hub(models.prompt(), PATCHES), models.to_hub(models.prompt(1, 9, 30), PATCHES)]
    ids, mask = models.pad(rows)
    pixels = torch.cat([inputs["pixel_values"], models.pixels(1)[:, :, ::3, ::3]])
    with visiondrop.apply(model, tokens=16):
        together = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits[:, -1]
        for i, row in enumerate(rows):
            alone = model(input_ids=torch.tensor([row]), pixel_values=pixels[i : i + 1]).logits[0, -1]
            assert (together[i] - alone).abs().max() <= 1e-5
