"""Small models for tests: the golden weights in our own class and in transformers' class, no files needed."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration
from transformers import LlavaConfig as HubConfig

from llava.config import LlavaConfig
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from tests.support.golden import golden_checkpoint as golden

HUB_IMAGE_ID = golden.TEXT["vocab_size"]  # one id beyond the vocabulary of the original layout


def text_settings(layers: int, **changes) -> dict:
    """LLaMA settings of the golden checkpoint with `layers` layers."""
    special = dict(bos_token_id=1, eos_token_id=None, pad_token_id=0)
    return {**golden.TEXT, "num_hidden_layers": layers, **special, **changes}


DEEP = dict(golden.VISION, num_hidden_layers=24)  # the tower of shared/golden/golden_deep_tower.py
SHARP = 3.0  # its queries, for traces called *-sharp_*: attention as uneven as a trained tower's


def native(
    layers: int = 32, dtype=torch.float32, attn: str = "sdpa", tower: str = "", **changes
) -> LlavaLlamaForCausalLM:
    """Our class with the golden weights; tower: "" (4 layers), "deep" (24) or "sharp" (24, uneven attention)."""
    config = LlavaConfig(
        **text_settings(layers, **changes),
        vision_config=dict(DEEP if tower else golden.VISION),
        mm_hidden_size=64,
        attn_implementation=attn,
    )
    model = LlavaLlamaForCausalLM(config).eval()
    for name, value in model.state_dict().items():
        value.copy_(
            torch.from_numpy(golden.tensor(name.replace("model.vision_tower.vision_tower.", ""), tuple(value.shape)))
        )
    sharpen(model.state_dict(), tower)
    model.generation_config.eos_token_id = None
    return model.to(dtype)


def sharpen(state_dict: dict, tower: str) -> None:
    """The query projections of a tower called "sharp", in place."""
    for name, value in state_dict.items():
        if tower == "sharp" and "vision_tower" in name and ".q_proj." in name:
            value.mul_(SHARP)


def hub(layers: int = 32, attn: str = "sdpa", tower: str = "", **changes) -> LlavaForConditionalGeneration:
    """transformers' class with the golden weights; the placeholder has an embedding row of its own (zeros)."""
    vocab = HUB_IMAGE_ID + 1
    config = HubConfig(
        vision_config=CLIPVisionConfig(**(DEEP if tower else golden.VISION)),
        text_config=LlamaConfig(**text_settings(layers, vocab_size=vocab, **changes)),
        image_token_index=HUB_IMAGE_ID,
        attn_implementation=attn,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for name, value in model.state_dict().items():
        original = (
            name.replace("model.language_model.", "model.")
            .replace("model.multi_modal_projector.linear_1", "model.mm_projector.0")
            .replace("model.multi_modal_projector.linear_2", "model.mm_projector.2")
            .replace("model.vision_tower.", "vision_model.")
        )
        shape = tuple(value.shape)
        if shape[0] == vocab:
            value.zero_()
            value[:-1].copy_(torch.from_numpy(golden.tensor(original, (vocab - 1, *shape[1:]))))
        else:
            value.copy_(torch.from_numpy(golden.tensor(original, shape)))
    sharpen(model.state_dict(), tower)
    model.generation_config.eos_token_id = None
    # The extra row must never be an answer, so that both layouts choose from the same words.
    model.generation_config.suppress_tokens = [HUB_IMAGE_ID]
    return model


def pixels(*seeds: int) -> torch.Tensor:
    """[N, 3, 336, 336] pictures."""
    return torch.stack([torch.from_numpy(golden.pixel_values(seed)) for seed in seeds])


def prompt(seed: int = 0, before: int = 35, after: int = 22) -> list[int]:
    """Ids with one -200."""
    return golden.input_ids(seed, before, after)


def to_hub(ids: list[int], tokens: int = 576) -> list[int]:
    """The same prompt with `tokens` placeholders of the hub layout."""
    out = []
    for token in ids:
        out += [HUB_IMAGE_ID] * tokens if token == IMAGE_TOKEN_INDEX else [token]
    return out


def pad(rows: list[list[int]], side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), each [B, T]."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        gap = width - len(row)
        ids.append([0] * gap + row if side == "left" else row + [0] * gap)
        mask.append([0] * gap + [1] * len(row) if side == "left" else [1] * len(row) + [0] * gap)
    return torch.tensor(ids), torch.tensor(mask)
