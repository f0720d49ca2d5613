"""Random-weight models and inputs of chosen widths: schedule lengths do not depend on data, so time and memory do not."""

import torch
from torch import Tensor, nn

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from visiondrop.layout import Image, Layout, Span
from visiondrop.plan import VisualShape

BEFORE, AFTER = 35, 28  # text tokens before and behind the image (performance.md §1)
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {
    "small": {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 8, "num_attention_heads": 16},
    "deep": {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 32, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}


def build(
    size: str | dict,
    tower: dict = CLIP_TINY,
    vocab: int = 512,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: str = "sdpa",
    seed: int = 0,
) -> LlavaLlamaForCausalLM:
    """A LLaVA-1.5-shaped model with random weights: CLIP at 336 px / 14 (576 patches), two-layer projector, LLaMA."""
    torch.manual_seed(seed)
    text = SIZES[size] if isinstance(size, str) else size
    config = LlavaConfig(
        **text,
        vocab_size=vocab,
        max_position_embeddings=65536,
        attn_implementation=attention,
        mm_hidden_size=tower["hidden_size"],
        vision_config={**tower, "image_size": 336, "patch_size": 14, "projection_dim": 64, "hidden_act": "quick_gelu"},
        eos_token_id=None,
        bos_token_id=1,
        pad_token_id=0,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaLlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    return model.requires_grad_(False)


def prompts(model: nn.Module, rows: int, before: int = BEFORE, after: int = AFTER, seed: int = 0) -> tuple[Tensor, Tensor]:
    """([rows, before + 1 + after] ids with one placeholder each, [rows, 3, 336, 336] pixels)."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.vocab_size, (rows, before + 1 + after), generator=draw)
    ids[:, before] = -200
    pixels = torch.randn(rows, 3, 336, 336, generator=draw)
    return ids.to(model.device), pixels.to(model.device, model.dtype)


def stack_input(model: nn.Module, rows: int, shape: VisualShape, text: int = BEFORE + AFTER, seed: int = 0) -> tuple[Tensor, Layout]:
    """What the decoder stack receives: embeddings [rows, text + visual, D] in unpruned length, and where images stand."""
    draw = torch.Generator().manual_seed(seed)
    length = text + shape.tokens
    hidden = torch.randn(rows, length, model.config.hidden_size, generator=draw).to(model.device, model.dtype)
    spans = [Span(row, BEFORE, Image(shape)) for row in range(rows)]
    return hidden, Layout(spans, [length] * rows, length, None, [[length] for _ in range(rows)])
