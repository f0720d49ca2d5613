"""Loading a LLaVA checkpoint: tokenizer, model, image processor and context length from one path.

    tokenizer, model, image_processor, context_len = load_pretrained_model(
        "liuhaotian/llava-v1.5-7b", None, "llava-v1.5-7b"
    )

Differences from the original function of that name (https://github.com/haotian-liu/LLaVA, llava/model/builder.py,
release 1.2.2): hub-layout checkpoints load too, a machine without an accelerator uses the CPU under device_map="auto",
and `model_base` (unmerged LoRA and projector-only checkpoints) is refused.
"""

import os
from typing import Any

import torch
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedTokenizerBase
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import is_accelerate_available, is_bitsandbytes_available, is_flash_attn_2_available, logging

from llava.checkpoints.read import check_complete, read_checkpoint
from llava.checkpoints.tokenizer import load_tokenizer
from llava.conversation import SeparatorStyle, conv_templates
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.prompts import template_of
from visiondrop.errors import VisionDropError

logger = logging.get_logger(__name__)

ATTENTION = ("sdpa", "eager", "flash_attention_2")
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_DEFAULT_CONTEXT = 2048
# Spreading strategies of accelerate; every other string is a device.
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def load_pretrained_model(
    model_path: str | os.PathLike,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: Any = "cuda",
    torch_dtype: Any = None,
    attn_implementation: str | None = None,
    use_flash_attn: bool = False,
    *,
    dtype: Any = None,
    customized_config: str | os.PathLike | None = None,
    max_memory: dict | None = None,
    offload_folder: str | os.PathLike | None = None,
    multimodal: Any = None,
    low_cpu_mem_usage: Any = None,
    **unknown: Any,
) -> tuple[PreTrainedTokenizerBase, LlavaLlamaForCausalLM, CLIPImageProcessorPil, int]:
    """Load a checkpoint of LLaVA over LLaMA (Vicuna, Llama 3, Yi) or Mistral in original or hub layout.

    Args:
        model_path: folder or hub id.
        model_base: must be None.
        model_name: not needed; what is loaded follows from config.json.
        load_8bit, load_4bit: quantise the decoder layers with bitsandbytes.
        device_map: "auto" (spread over the accelerators; the CPU where there are none) or another strategy of
            accelerate, a device, or a dict of module to device.
        device: overrides device_map unless it is "cuda".
        torch_dtype, dtype: a torch dtype, its name, or "auto" (as stored); float16 by default, as in the original.
        attn_implementation: "sdpa" (default), "eager" or "flash_attention_2", which use_flash_attn stands for.
        customized_config: a JSON file in place of the checkpoint's config.json.
        max_memory, offload_folder: passed on to transformers.
        multimodal, low_cpu_mem_usage: accepted for callers of older releases, without effect.

    Returns:
        (tokenizer, model in eval mode, CLIP image processor on PIL, context length in tokens).

    Raises:
        VisionDropError: anything missing, half-downloaded, unsupported or contradictory, in one sentence.
    """
    _refuse(unknown, model_base)
    attention = _attention(attn_implementation, use_flash_attn)
    placement = _placement(device_map, device)
    quantization = _quantization(load_8bit, load_4bit)
    checkpoint = read_checkpoint(model_path, customized_config)
    dtype = _dtype(dtype if dtype is not None else torch_dtype, checkpoint.stored_dtype, attention)
    tokenizer = load_tokenizer(checkpoint.folder)
    image_processor = _image_processor(checkpoint)
    model = _build(
        checkpoint,
        dtype=dtype,
        device_map=placement,
        attn_implementation=attention,
        quantization_config=quantization,
        max_memory=max_memory,
        offload_folder=offload_folder,
    )
    model.generation_config = _generation_config(checkpoint.folder, model, tokenizer)
    model.get_vision_tower().image_processor = image_processor
    context_len = getattr(model.config, "max_sequence_length", None) or _DEFAULT_CONTEXT
    return tokenizer, model.eval(), image_processor, context_len


def _refuse(unknown, model_base):
    """Refuse arguments that would have no effect, or another one than asked for."""
    if unknown:
        raise VisionDropError(
            f"load_pretrained_model does not know {', '.join(sorted(unknown))}; its arguments are listed in "
            "llava/model/builder.py."
        )
    if model_base is not None:
        raise VisionDropError(
            f"model_base={str(model_base)!r} was given, but unmerged LoRA and projector-only checkpoints are not "
            "supported; "
            "merge the weights with the original LLaVA code and load the merged folder with model_base=None."
        )


def _build(checkpoint, **placement):
    """The model with the checkpoint's weights, after a check that none is missing. `placement`: arguments of
    from_pretrained.
    """
    expected = _parameter_shapes(checkpoint.config)
    if checkpoint.config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    check_complete(expected, checkpoint.weights, checkpoint.folder)
    surplus = sorted(checkpoint.weights.keys() - expected.keys() - {"lm_head.weight"})
    if surplus:
        logger.warning(
            "%s holds %d tensors this model has no place for, e.g. %s", checkpoint.folder, len(surplus), surplus[0]
        )
    weights = {name: tensor for name, tensor in checkpoint.weights.items() if name in expected}
    model = LlavaLlamaForCausalLM.from_pretrained(None, config=checkpoint.config, state_dict=weights, **placement)
    _leave_files(model, weights)
    model.name_or_path = model.config.name_or_path = str(checkpoint.folder)
    return model


def _leave_files(model, weights):
    """Copy parameters that still are in the memory-mapped `weights`, so that overwriting a file cannot change a loaded
    model.
    """
    mapped = {tensor.data_ptr() for tensor in weights.values()}
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() in mapped:
            parameter.data = parameter.data.clone()


def _parameter_shapes(config):
    """name -> shape of every tensor that a model of `config` needs, without allocating one."""
    with torch.device("meta"):
        skeleton = LlavaLlamaForCausalLM(config)
    return {name: tensor.shape for name, tensor in skeleton.state_dict().items()}


def _attention(name, use_flash_attn):
    """The attention implementation to use, checked to be available."""
    if use_flash_attn:
        name = "flash_attention_2"
    name = name or "sdpa"
    if name not in ATTENTION:
        raise VisionDropError(f"Unknown attn_implementation {name!r}; allowed are {', '.join(ATTENTION)}.")
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise VisionDropError(
            "attn_implementation 'flash_attention_2' needs the flash-attn package and a CUDA device, of which at least "
            "one is missing; "
            "install it with `pip install flash-attn --no-build-isolation`, or use 'sdpa'."
        )
    return name


def _dtype(dtype, stored, attention):
    """A torch dtype, one `attention` computes in, from a dtype, a name, "auto" (what the checkpoint says it is stored
    in) or None (float16, as in the original).
    """
    if dtype is None:
        return torch.float16
    if dtype == "auto":
        dtype = stored or "float16"
    resolved = _DTYPES.get(str(dtype).removeprefix("torch."))
    if resolved is None:
        raise VisionDropError(f"Unsupported dtype {dtype!r}; allowed are {', '.join(_DTYPES)} and 'auto'.")
    if attention == "flash_attention_2" and resolved is torch.float32:
        raise VisionDropError(
            "flash_attention_2 computes in float16 or bfloat16 only; pass torch_dtype=torch.float16, or use sdpa."
        )
    return resolved


def _placement(device_map, device):
    """device_map for from_pretrained; None is the CPU."""
    if device not in (None, "cuda"):
        device_map = device
    if isinstance(device_map, dict):
        devices = list(device_map.values())
    elif device_map is None or device_map in _STRATEGIES:
        if device_map is None or not torch.accelerator.is_available():
            return None
        devices = []
    else:
        devices, device_map = [device_map], {"": device_map}
    for name in devices:
        _check_device(name)
    if devices and all(str(name) == "cpu" for name in devices):
        return None
    if not is_accelerate_available():
        raise VisionDropError(
            f"device_map={device_map!r} needs the accelerate package: pip install accelerate, or use device_map='cpu'."
        )
    return device_map


def _check_device(name):
    """Raise VisionDropError where `name` ("cuda:0", 0, a torch.device, "disk") is no device of this machine."""
    if name == "disk":
        return
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise VisionDropError(
            f"Unknown device {name!r} in device_map; allowed are 'auto', 'cpu', 'cuda', 'cuda:0' and so on, or a dict "
            "of module to device."
        ) from error
    if device.type == "cpu":
        return
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if count == 0 or device.type != torch.accelerator.current_accelerator().type or (device.index or 0) >= count:
        raise VisionDropError(
            f"Device {str(name)!r} is not on this machine, which has {count} accelerators; pass device_map='cpu' or "
            "'auto'."
        )


def _quantization(load_8bit, load_4bit):
    """The bitsandbytes configuration of the original (8-bit, or 4-bit nf4 with double quantisation), or None.

    The tower and the projector stay in the model's dtype: their share of the memory is small, and scores are computed
    from them.
    """
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise VisionDropError("Both load_8bit and load_4bit were asked for; choose one.")
    if not is_bitsandbytes_available():
        bits = 8 if load_8bit else 4
        raise VisionDropError(
            f"load_{bits}bit needs the bitsandbytes package: pip install bitsandbytes, or load without it."
        )
    whole = ["lm_head", "model.vision_tower", "model.mm_projector"]
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=whole,
        bnb_4bit_compute_dtype=torch.float16,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
    )


def _image_processor(checkpoint):
    """CLIP's PIL processor of the checkpoint's tower; without a preprocessor_config.json, CLIP's own settings at the
    tower's size.
    """
    if checkpoint.processor_folder is not None:
        try:
            return CLIPImageProcessorPil.from_pretrained(checkpoint.processor_folder)
        except (OSError, ValueError, TypeError) as error:
            raise VisionDropError(
                f"Could not read preprocessor_config.json in {str(checkpoint.processor_folder)!r} ({error}); download "
                "it again."
            ) from error
    side = checkpoint.config.vision_config.image_size
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _generation_config(folder, model, tokenizer):
    """generation_config.json of the checkpoint, or what follows from config.json; padding is the tokenizer's where
    unset.

    Its max_length (4096 in LLaVA's files, the whole context) is left out: transformers would warn in every call of
    generate with max_new_tokens.
    """
    config = model.generation_config
    if (folder / "generation_config.json").is_file():
        try:
            config = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError, TypeError) as error:
            raise VisionDropError(
                f"Could not read generation_config.json in {str(folder)!r} ({error}); download it again."
            ) from error
    config.max_length = None
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    _end_with_the_turn(config, model, tokenizer)
    return config


def _end_with_the_turn(config, model, tokenizer):
    """Let `generate` stop at the token that ends a turn where that is not the end of a text: Yi's <|im_end|>, Llama 3's
    <|eot_id|>. The original stops at the string. `config` changes in place.
    """
    conversation = conv_templates[template_of(model.config)]
    if conversation.sep_style not in (SeparatorStyle.MPT, SeparatorStyle.LLAMA_3):
        return
    index = tokenizer.convert_tokens_to_ids(conversation.stop)
    known = config.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    if index is not None and index != tokenizer.unk_token_id and index not in ends:
        config.eos_token_id = [*ends, index]
