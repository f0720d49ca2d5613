"""Video-LLaVA-shaped models with golden weights: our class with or without temporal attention, and transformers'."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

from llava.config import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from tests.support import models
from tests.support.golden import golden_checkpoint as golden

SIDE, PATCHES, FRAMES = 112, 64, 8
LENGTH = FRAMES * (PATCHES + 1)
IMAGE_ID, VIDEO_ID = golden.TEXT["vocab_size"], golden.TEXT["vocab_size"] + 1
EXTRA = 2  # ids beyond the vocabulary of the original layout
VISION = {**golden.VISION, "image_size": SIDE}


def native(layers: int = 8, temporal: bool = True) -> LlavaLlamaForCausalLM:
    """Our class."""
    config = LlavaConfig(
        **models.text_settings(layers),
        mm_image_tower="LanguageBind/LanguageBind_Image",
        mm_video_tower="LanguageBind/LanguageBind_Video_merge",
        mm_hidden_size=64,
        vision_config=dict(VISION),
        video_config={**VISION, "num_frames": FRAMES, "add_time_attn": temporal},
    )
    model = LlavaLlamaForCausalLM(config).eval()
    for name, value in model.state_dict().items():
        original = name.replace("model.image_tower.image_tower.", "vision_model.")
        original = original.replace("model.video_tower.video_tower.", "vision_model.")
        value.copy_(torch.from_numpy(golden.tensor(original, tuple(value.shape))))
    model.generation_config.eos_token_id = None
    return model


def hub(layers: int = 8) -> VideoLlavaForConditionalGeneration:
    """transformers' class with the same weights, whose video tower has no temporal attention."""
    vocab = golden.TEXT["vocab_size"] + EXTRA
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**models.text_settings(layers, vocab_size=vocab)),
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
    )
    model = VideoLlavaForConditionalGeneration(config).eval()
    for name, value in model.state_dict().items():
        original = (
            name.replace("model.language_model.", "model.")
            .replace("model.multi_modal_projector.linear_1", "model.mm_projector.0")
            .replace("model.multi_modal_projector.linear_2", "model.mm_projector.2")
            .replace("model.video_tower.", "vision_model.")
            .replace("model.image_tower.", "vision_model.")
        ).replace("vision_model.vision_model.", "vision_model.")
        if value.shape[0] == vocab:
            value.zero_()
            value[:-EXTRA].copy_(torch.from_numpy(golden.tensor(original, (vocab - EXTRA, *value.shape[1:]))))
        else:
            value.copy_(torch.from_numpy(golden.tensor(original, tuple(value.shape))))
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE_ID, VIDEO_ID]
    return model


def image(seed: int) -> torch.Tensor:
    """[3, 112, 112]."""
    return models.pixels(seed)[0][:, ::3, ::3].contiguous()


def video(seed: int) -> torch.Tensor:
    """[3, 8, 112, 112]: one picture that moves."""
    still = image(seed)
    return torch.stack([still.roll(7 * t, dims=2) for t in range(FRAMES)], dim=1)


def prompt(*parts) -> list[int]:
    """Ids from "image" (one -200), "video" (eight) and numbers (so many text ids)."""
    ids, text = [1], iter(models.prompt(5, 200, 200)[1:])
    for part in parts:
        ids += {"image": [-200], "video": [-200] * FRAMES}.get(part) or [t for t, _ in zip(text, range(part))]
    return ids


def to_hub(rows: list[list[int]], images: list[torch.Tensor]) -> dict:
    """The same inputs for transformers' class."""
    kinds, out = iter(images), []
    for row in rows:
        ids, skip = [], 0
        for token in row:
            if token != -200:
                ids.append(token)
            elif skip:
                skip -= 1
            elif next(kinds).ndim == 3:
                ids += [IMAGE_ID] * PATCHES
            else:
                ids, skip = ids + [VIDEO_ID] * LENGTH, FRAMES - 1
        out.append(ids)
    ids, mask = models.pad(out)
    inputs = dict(input_ids=ids, attention_mask=mask)
    stills = [i for i in images if i.ndim == 3]
    videos = [i.transpose(0, 1) for i in images if i.ndim == 4]
    name = "pixel_values" if "pixel_values" in VideoLlavaForConditionalGeneration.forward.__code__.co_varnames else None
    if stills:
        inputs[name or "pixel_values_images"] = torch.stack(stills)
    if videos:
        inputs["pixel_values_videos"] = torch.stack(videos)
    return inputs
