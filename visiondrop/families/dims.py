"""Dimensions of the table's families, for FLOPs, from a configuration of transformers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..plans.flops import ModelDims
from ..plans.towers import GridTower


def dims_of(config: Any, patches: str) -> ModelDims:
    """The dimensions of a model with this configuration; `patches` as in `families.table`."""
    text = config.text_config
    heads = text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    experts = getattr(text, "num_experts", 0)
    return ModelDims(
        name=config.name_or_path or config.architectures[0] if config.architectures else type(config).__name__,
        hidden=text.hidden_size,
        intermediate=text.num_experts_per_tok * text.moe_intermediate_size if experts else text.intermediate_size,
        layers=text.num_hidden_layers,
        vocab=text.vocab_size,
        kv_share=text.num_key_value_heads / heads,
        attention=width,
        router=experts,
        cls=0,
        grid_tower=TOWERS[patches](config),
    )


def _merging(config: Any) -> GridTower:
    """Qwen's towers: every token's patches side by side through two matrices (and once more per deepstack layer)."""
    vision = config.vision_config
    if vision.model_type.startswith("glm4v"):
        return _glm(vision)
    hidden = getattr(vision, "embed_dim", None) or vision.hidden_size
    out = getattr(vision, "out_hidden_size", None) or vision.hidden_size
    unit = vision.spatial_merge_size**2 * hidden
    whole = getattr(vision, "fullatt_block_indexes", None)
    merger = ((unit, unit), (unit, out)) * (1 + len(getattr(vision, "deepstack_visual_indexes", ())))
    return GridTower(
        hidden=hidden,
        intermediate=getattr(vision, "intermediate_size", None) or hidden * vision.mlp_ratio,
        layers=vision.depth,
        patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        merge=vision.spatial_merge_size,
        gated=whole is not None,
        window=vision.window_size // vision.patch_size // vision.spatial_merge_size if whole else 0,
        whole=len(whole) if whole else 0,
        merger=merger,
    )


def _glm(vision: Any) -> GridTower:
    """GLM's: a convolution over every token's patches, a matrix, a gated MLP."""
    out, inside = vision.out_hidden_size, vision.intermediate_size
    unit = vision.spatial_merge_size**2 * vision.hidden_size
    return GridTower(
        hidden=vision.hidden_size,
        intermediate=out,
        layers=vision.depth,
        patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        merge=vision.spatial_merge_size,
        gated=True,
        merger=((unit, out), (out, out), *((out, inside),) * 3),
    )


def _connecting(config: Any) -> GridTower:
    """Idefics3's: SigLIP on every tile, the patches of a token side by side through one matrix."""
    vision = config.vision_config
    unit = config.scale_factor**2 * vision.hidden_size
    merge, merger = config.scale_factor, ((unit, config.text_config.hidden_size),)
    return replace(_tiling(config), merge=merge, merger=merger)


def _shuffling(config: Any) -> GridTower:
    """InternVL's: tiles with [CLS], four patches of a token side by side through two matrices."""
    vision, text = config.vision_config, config.text_config.hidden_size
    (height, width), (down, across) = _pair(vision.image_size), _pair(vision.patch_size)
    merge = round(1 / config.downsample_ratio)
    return GridTower(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        layers=vision.num_hidden_layers,
        patch_inputs=vision.num_channels * down * across,
        merge=merge,
        cls=1,
        merger=((vision.hidden_size * merge**2, text), (text, text)),
        tile=(height // down) * (width // across),
    )


def _tiling(config: Any) -> GridTower:
    """LLaVA-OneVision's: SigLIP on every tile, a projector of two matrices on every patch."""
    vision, text = config.vision_config, config.text_config.hidden_size
    return GridTower(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        layers=vision.num_hidden_layers,
        patch_inputs=vision.num_channels * vision.patch_size**2,
        merge=1,
        merger=((vision.hidden_size, text), (text, text)),
        tile=(vision.image_size // vision.patch_size) ** 2,
    )


TOWERS: dict[str, Callable[[Any], GridTower]] = {
    "merge": _merging,
    "windows": _merging,
    "shuffle": _shuffling,
    "connector": _connecting,
    "tiles": _tiling,
}


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
