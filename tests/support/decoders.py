"""Small random LLaVA-NeXT checkpoints over the decoders of v1.6 and later: Mistral, Yi, Llama 3, all with shared key
heads, in the hub's layout and in the original's.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
)

from tests.support.checkpoints import CLIP_MEAN, CLIP_STD
from tests.support.next_models import SIDE, pinpoints, vision
from tests.support.small_tokenizer import write_json, write_tokenizer

LAYERS = 8
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": None,
}
# name -> (class of the text configuration, rows of the published vocabulary, base of the rotary embedding)
DECODERS = {
    "mistral": (MistralConfig, 32_000, 1e6),
    "yi": (LlamaConfig, 64_000, 5e6),
    "llama3": (LlamaConfig, 128_256, 5e5),
}
TEMPLATES = {"mistral": "mistral_instruct", "yi": "chatml_direct", "llama3": "llava_llama_3"}
HUB_ROWS = 64  # that the hub's conversion adds


def hub(name: str, attention: str = "sdpa", **changes) -> LlavaNextForConditionalGeneration:
    """transformers' class with random weights, the same at every call."""
    kind, vocabulary, base = DECODERS[name]
    text = {**TEXT, "vocab_size": vocabulary + HUB_ROWS, "rope_theta": base}
    if name == "mistral":
        text |= {"sliding_window": None, "head_dim": 12}  # not hidden_size / heads
    config = LlavaNextConfig(
        text_config=kind(**text | changes),
        vision_config=CLIPVisionConfig(**vision()),
        image_token_index=vocabulary,
        image_grid_pinpoints=[[h, w] for w, h in pinpoints()],
        attn_implementation=attention,
    )
    torch.manual_seed(len(name))
    model = LlavaNextForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.model.image_newline.normal_()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.generation_config.suppress_tokens = list(range(vocabulary, vocabulary + HUB_ROWS))
    return model


def write_llama3_tokenizer(folder: Path) -> None:
    """A tokenizer.json in the manner of Llama 3: byte-level pieces, header and turn tokens, a begin token, no padding."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(special)
    begin = tokenizer.token_to_id(special[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", pair=f"{special[0]} $A {special[0]} $B", special_tokens=[(special[0], begin)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": special[0], "eos_token": special[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", settings)


def _write_rest(folder: Path, name: str) -> None:
    """Tokenizer and image processor."""
    if name == "llama3":
        write_llama3_tokenizer(folder)
    elif name == "yi":
        token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        added = {str(i): token | {"content": text} for i, text in ((6, "<|im_start|>"), (7, "<|im_end|>"))}
        write_tokenizer(folder, "model", add_bos_token=False, added_tokens_decoder=added)
    else:
        write_tokenizer(folder, "model")
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}, "resample": 3}
    processor |= {"crop_size": {"height": SIDE, "width": SIDE}, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    write_json(folder / "preprocessor_config.json", processor)


def write_hub(folder: Path, name: str) -> Path:
    """The layout of llava-hf/llava-v1.6-mistral-7b-hf and relatives."""
    path = Path(folder) / f"{name}-hf"
    hub(name).save_pretrained(path)
    _write_rest(path, name)
    return path


def write_original(folder: Path, name: str, **fields) -> Path:
    """The layout of liuhaotian/llava-v1.6-mistral-7b and relatives: original names, the tower inside, no hub rows."""
    path = Path(folder) / f"llava-{name}"
    path.mkdir(parents=True)
    model, (_, vocabulary, base) = hub(name), DECODERS[name]
    tensors = {}
    for key, value in model.state_dict().items():
        key = key.replace("model.language_model.", "model.").replace("multi_modal_projector.linear_1", "mm_projector.0")
        key = key.replace("multi_modal_projector.linear_2", "mm_projector.2")
        if key.startswith("model.vision_tower."):
            key = "model.vision_tower.vision_tower.vision_model." + key.removeprefix(
                "model.vision_tower."
            ).removeprefix("vision_model.")
        rows = vocabulary if len(value.shape) and value.shape[0] == vocabulary + HUB_ROWS else None
        tensors[key] = value[:rows].clone() if rows else value
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    raw = {
        **TEXT,
        "architectures": ["LlavaMistralForCausalLM" if name == "mistral" else "LlavaLlamaForCausalLM"],
        "model_type": "llava_mistral" if name == "mistral" else "llava_llama",
        "vocab_size": vocabulary,
        "rope_theta": base,
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": pinpoints(),
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 64,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "vision_config": vision(),
        "torch_dtype": "float32",
        "unfreeze_mm_vision_tower": True,
    }
    if name == "mistral":
        raw |= {"sliding_window": None, "head_dim": 12}
    write_json(path / "config.json", raw | fields)
    _write_rest(path, name)
    return path
