"""From patches to tokens: numbers that a tower has per patch, as numbers per visual token, by each family's own rule.

Every function takes numbers of patches in the tower's order [P, E] and returns those of the tokens in the prompt's order
[N, E], by sending them the way that the features themselves take.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..compat import Model

Arguments = dict[str, Any]


def merged(inner: Model, numbers: Tensor, arguments: Arguments) -> Tensor:
    """Qwen2-VL, Qwen3-VL: the patches that become one token stand side by side; their mean."""
    unit = inner.visual.spatial_merge_size**2
    return numbers.view(-1, unit, numbers.shape[-1]).mean(dim=1)


def windows(inner: Model, numbers: Tensor, arguments: Arguments) -> Tensor:
    """Qwen2.5-VL: as `merged`, and back from the order of attention windows."""
    tokens = merged(inner, numbers, arguments)
    return tokens[window_index(inner.visual, grid_of(arguments)).argsort().to(tokens.device)]


def window_index(tower: Model, grid: Tensor) -> Tensor:
    """[N] long: at every place of the windows' order, the token in the prompt's order."""
    if hasattr(tower, "get_window_index"):
        index = tower.get_window_index(grid)[0]
    else:
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

        index = modeling.get_vision_window_index(
            grid,
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )[0]
    return torch.as_tensor(index)


def shuffled(inner: Model, numbers: Tensor, arguments: Arguments) -> Tensor:
    """InternVL: a tile's grid through the model's own pixel shuffle; the mean of the patches in each token."""
    ratio, tiles = inner.config.downsample_ratio, len(arguments["pixel_values"])
    side = round((len(numbers) // tiles) ** 0.5)
    out = inner.pixel_shuffle(numbers.view(tiles, side, side, -1), scale_factor=ratio)
    # The channels of a token are those of its patches, one patch after the other.
    return out.reshape(-1, round(ratio**-2), numbers.shape[-1]).mean(dim=1)


def connected(inner: Model, numbers: Tensor, arguments: Arguments) -> Tensor:
    """Idefics3, SmolVLM: a tile's grid through the connector's pixel shuffle; the mean of the patches in each token."""
    unit = inner.connector.scale_factor
    side = inner.config.vision_config.image_size // inner.config.vision_config.patch_size
    out = inner.connector.pixel_shuffle(numbers.view(-1, side**2, numbers.shape[-1]), unit)
    return out.reshape(-1, unit**2, numbers.shape[-1]).mean(dim=1)


def stitched(inner: Model, numbers: Tensor, arguments: Arguments) -> Tensor:
    """LLaVA-OneVision: tiles stitched, cut to the picture and scaled down, frames pooled, by the model's own functions.

    A newline's number is 0 for the first channel (the score) and the picture's mean for the others (the metric).
    """
    side = inner.config.vision_config.image_size // inner.config.vision_config.patch_size
    units = numbers.view(-1, side * side, numbers.shape[-1])
    if "pixel_values_videos" in arguments:
        frames = arguments["pixel_values_videos"].shape[1]
        pooled = inner.apply_pooling(units).reshape(len(units) // frames, -1, numbers.shape[-1])
        return torch.cat([torch.cat([video, _newline(video)[None]]) for video in pooled])
    sizes = arguments["image_sizes"]
    aspect = arguments.get("vision_aspect_ratio") or inner.config.vision_aspect_ratio
    packed = []
    for i, tiles in enumerate(torch.split(units, tiles_of(inner, sizes, arguments.get("batch_num_images")))):
        packed += inner.pack_image_features([tiles], sizes[i : i + 1], _newline(tiles.flatten(0, 1)), aspect)[0]
    return torch.cat(packed)


def _newline(numbers: Tensor) -> Tensor:
    newline = numbers.mean(dim=0)
    newline[0] = 0
    return newline


def tiles_of(inner: Model, sizes: Tensor, pictures_per_sample: Tensor | None) -> list[int]:
    """LLaVA-OneVision: how many tiles each picture has; several pictures in a sample have one each."""
    from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

    alone = [True] * len(sizes)
    if pictures_per_sample is not None:
        alone = [n == 1 for n in pictures_per_sample for _ in range(n)]
    side, pinpoints = inner.config.vision_config.image_size, inner.config.image_grid_pinpoints
    return [image_size_to_num_patches(size, pinpoints, side) if one else 1 for size, one in zip(sizes, alone)]


def grid_of(arguments: Arguments) -> Tensor | None:
    """[items, 3] (frames, rows, columns) of patches, where the family has a grid per picture or video."""
    found = [arguments[name] for name in ("image_grid_thw", "video_grid_thw", "grid_thw") if name in arguments]
    return found[0] if found else None


PATCHES: dict[str, Callable[[Model, Tensor, Arguments], Tensor]] = {
    "merge": merged,
    "windows": windows,
    "shuffle": shuffled,
    "connector": connected,
    "tiles": stitched,
}
