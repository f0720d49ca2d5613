"""Tiny checkpoints of the newer families in the files that the hub has: configuration, weights, processor, tokenizer."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support import hub_families as tiny

QWEN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PICTURE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLImageProcessor", "<|vision_start|><|image_pad|><|vision_end|>"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "<|vision_start|><|image_pad|><|vision_end|>"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen2VLImageProcessor", "<|vision_start|><|image_pad|><|vision_end|>"),
    "onevision": ("LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor", "<image>\n"),
    "internvl": ("InternVLProcessor", "GotOcr2ImageProcessor", "<IMG_CONTEXT>\n"),
}


def tokenizer(specials: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with these special tokens, a few words learnt."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=letters)
    inner.train_from_iterator(["what is on the table? a cat and a dog, two red stars, yes or no."] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[s for s in specials if s not in ("<|im_end|>", "<|endoftext|>")],
    )


def save(name: str, folder: Path, side: int = 14) -> None:
    """Write a random tiny checkpoint of family `name`, as `save_pretrained` and the hub lay it out.

    Args:
        side: pixels of a patch, for Qwen's.
    """
    processor, images, picture = FAMILIES[name]
    specials = [*QWEN, "<image>", "<video>", "<IMG_CONTEXT>", "<img>", "</img>"]
    words = tokenizer(specials)
    for attribute, token in {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }.items():
        if name == "internvl":
            words.init_kwargs[attribute] = token
    token = {"onevision": "<image>", "internvl": "<IMG_CONTEXT>"}.get(name, "<|image_pad|>")
    video = {"onevision": "<video>", "internvl": "<video>"}.get(name, "<|video_pad|>")
    ids = {
        "IMAGE": words.convert_tokens_to_ids(token),
        "VIDEO": words.convert_tokens_to_ids(video),
        "VOCAB": len(words),
    }
    model = tiny.build(name, **ids)
    if side != 14:
        model.config.vision_config.patch_size = side
        model = type(model)(model.config)
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    settings = {"image_processor_type": images, "processor_class": processor}
    if name.startswith("qwen"):
        settings |= {
            "patch_size": side,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "min_pixels": 56 * 56,
            "max_pixels": 224 * 224,
        }
    elif name == "onevision":
        settings |= {"size": {"height": 56, "width": 56}, "image_grid_pinpoints": model.config.image_grid_pinpoints}
    else:
        settings |= {"size": {"height": 56, "width": 56}, "crop_to_patches": True, "min_patches": 1, "max_patches": 4}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    more = {
        "onevision": {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        "internvl": {"image_seq_length": 4},
    }
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor, **more.get(name, {})}))
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("PICTURE", picture))
