"""Random-weight models and inputs of chosen dimensions: lengths do not depend on data, so time and memory do not."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaForConditionalGeneration
from transformers import LlavaConfig as HubConfig
from transformers.masking_utils import create_causal_mask

from llava.config import LlavaConfig
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from visiondrop.compat import CACHE
from visiondrop.plans.plan import Plan
from visiondrop.plans.shape import VisualShape
from visiondrop.stack.layout import Image, Layout, Span, padding_mask

BEFORE, AFTER = 35, 28  # text tokens before and after the image (what Table 4 implies)
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {
    "thin": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2},
    "small": {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 8, "num_attention_heads": 16},
    "deep": {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 32, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
PICTURE = {"image_size": 336, "patch_size": 14, "projection_dim": 64, "hidden_act": "quick_gelu"}
IDS = {"eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0}


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
    config = LlavaConfig(
        **(SIZES[size] if isinstance(size, str) else size),
        **IDS,
        vocab_size=vocab,
        max_position_embeddings=65536,
        attn_implementation=attention,
        mm_hidden_size=tower["hidden_size"],
        vision_config={**tower, **PICTURE},
    )
    return _make(LlavaLlamaForCausalLM, config, dtype, device, seed)


def build_stock(
    size: str | dict,
    tower: dict = CLIP_TINY,
    vocab: int = 512,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: str = "sdpa",
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """The same dimensions in transformers' own class, with nothing of ours in it."""
    text = LlamaConfig(
        **(SIZES[size] if isinstance(size, str) else size), **IDS, vocab_size=vocab, max_position_embeddings=65536
    )
    config = HubConfig(
        vision_config=CLIPVisionConfig(**tower, **PICTURE),
        text_config=text,
        image_token_index=vocab - 1,
        attn_implementation=attention,
    )
    return _make(LlavaForConditionalGeneration, config, dtype, device, seed)


def _make(kind: type, config, dtype: torch.dtype, device: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = kind(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    return model.requires_grad_(False)


def prompts(
    model: nn.Module, rows: int, before: int = BEFORE, after: int = AFTER, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """([rows, before + 1 + after] ids with one placeholder each, [rows, 3, 336, 336] pixels)."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.vocab_size, (rows, before + 1 + after), generator=draw)
    ids[:, before] = IMAGE_TOKEN_INDEX
    return ids.to(model.device), pictures(model, rows, seed)


def pictures(model: nn.Module, count: int, seed: int = 0) -> Tensor:
    """[count, 3, 336, 336] pixels."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 336, 336, generator=draw).to(model.device, model.dtype)


def crops(units: int, layers: int) -> VisualShape:
    """A plain image (1 unit), or one cut into as many crops, of 576 patches each, without newlines."""
    return VisualShape(
        layers=layers, units=units, nominal_units=units, source="pad" if units == 1 else f"{units} crops"
    )


def stack_input(
    model: nn.Module, rows: int, shape: VisualShape, text: int = BEFORE + AFTER, uneven: bool = False
) -> tuple[Tensor, Callable]:
    """What the decoder receives: embeddings [rows, text + visual, D] in unpruned length, and a maker of layouts.

    uneven: every other row has one text token less, so that all attention takes a mask.
    """
    draw = torch.Generator().manual_seed(0)
    width = text + shape.tokens
    hidden = torch.randn(rows, width, model.config.hidden_size, generator=draw).to(model.device, model.dtype)
    lengths = _lengths(rows, width, uneven)

    def layout() -> Layout:
        spans = [Span(row, BEFORE, Image(shape)) for row in range(rows)]
        mask = padding_mask(lengths, width, torch.device("cpu"))
        return Layout(spans, list(lengths), width, mask, [[length] for length in lengths])

    return hidden, layout


def _lengths(rows: int, width: int, uneven: bool) -> list[int]:
    return [width - (row % 2 if uneven else 0) for row in range(rows)]


def free_stack(
    model: nn.Module, rows: int, plan: Plan, text: int = BEFORE + AFTER, cached: bool = True, uneven: bool = False
) -> Callable:
    """The same layers on the lengths of `plan` with selection for free: tokens are cut off, nothing else is done."""
    stack, counts = model.model, plan.counts
    edges = [0, *(stage.layer for stage in plan.stages), plan.shape.layers]
    draw = torch.Generator().manual_seed(0)
    width = model.config.hidden_size
    start = torch.randn(rows, text + counts[0], width, generator=draw).to(model.device, model.dtype)

    def run() -> Tensor:
        hidden, cache = start, DynamicCache(config=model.config) if cached else None
        for k, (first, last) in enumerate(zip(edges, edges[1:])):
            if k:
                parts = [hidden[:, : BEFORE + counts[k]], hidden[:, BEFORE + counts[k - 1] :]]
                hidden = torch.cat(parts, dim=1)
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
            rope = stack.rotary_emb(hidden, position_ids=positions)
            valid = padding_mask(_lengths(rows, hidden.shape[1], uneven), hidden.shape[1], hidden.device)
            mask = create_causal_mask(model.config, hidden, attention_mask=valid, **{CACHE: None})
            given = {"attention_mask": mask, "position_embeddings": rope, "position_ids": None}
            for layer in stack.layers[first:last]:
                hidden = layer(hidden, **{CACHE: cache}, **given)
        return model.lm_head(stack.norm(hidden)[:, -1:])

    return run
