"""LanguageBind's video tower for training: the testbed's tower whose layers first attend over time.

    weights = testbed_weights | temporal_weights(sizes, seed=0)    # the attention over time starts as the identity
    features, attention = encode_video(weights, sizes, patches, cells)

Letters: B clips, F frames, K places (patch positions that are computed, the same in all frames), R = 1 + K with [CLS]
first, D width, H heads.  Left-out places are background (`course.py`); with all 256 the result is that of
llava/model/multimodal_encoder/modeling_languagebind.py (tests/testbed/test_video.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from testbed.data.scenes import FULL_GRID
from testbed.training.model import TOWER, Sizes, Weights
from testbed.video.scenes import FRAMES, GRID


def temporal_weights(sizes: Sizes, seed: int) -> Weights:
    """Fresh weights of the attention over time; output projections and frame embeddings are 0."""
    generator = torch.Generator().manual_seed(seed)
    width, out = sizes.vision_width, {}
    for layer in range(sizes.vision_layers):
        at = f"{TOWER}encoder.layers.{layer}.temporal_"
        out[f"{at}embedding"] = torch.zeros(1, FRAMES, width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            scale = 0.0 if name == "out_proj" else width**-0.5
            out[f"{at}attn.{name}.weight"] = torch.randn(width, width, generator=generator) * scale
            out[f"{at}attn.{name}.bias"] = torch.zeros(width)
        out[f"{at}layer_norm1.weight"], out[f"{at}layer_norm1.bias"] = torch.ones(width), torch.zeros(width)
    return out


def window_positions(table: torch.Tensor) -> torch.Tensor:
    """Position embeddings [1 + 256, D]: of the testbed's [1 + 576, D] the 16 x 16 window in the middle."""
    if len(table) == 1 + GRID * GRID:
        return table
    corner = (FULL_GRID - GRID) // 2
    places = table[1:].view(FULL_GRID, FULL_GRID, -1)[corner : corner + GRID, corner : corner + GRID]
    return torch.cat([table[:1], places.reshape(GRID * GRID, -1)])


def encode_video(weights: Weights, sizes: Sizes, patches: torch.Tensor, cells: torch.Tensor):
    """Features of the tower's layer -2.

    patches: normalised [B, F, K, 588], channel by channel; cells: their places, raster order, int64 [B, K].
    Returns features [B, F, R, D] and the [CLS] row of that layer's attention, mean over heads [B, F, K].
    """
    batch, frames, count, _ = patches.shape
    width, emb = sizes.vision_width, f"{TOWER}embeddings."
    x = patches @ weights[f"{emb}patch_embedding.weight"].reshape(width, -1).T
    place = window_positions(weights[f"{emb}position_embedding.weight"])
    first = (weights[f"{emb}class_embedding"] + place[0]).expand(batch, frames, 1, width)
    x = torch.cat([first, x + place[1:][cells][:, None]], 2)
    x = _norm(weights, f"{TOWER}pre_layrnorm", x, sizes)
    attention = None
    for layer in range(sizes.vision_layers - 1):
        at = f"{TOWER}encoder.layers.{layer}."
        x = x + weights[f"{at}temporal_embedding"][:, :, None]
        y = _norm(weights, f"{at}temporal_layer_norm1", x, sizes).transpose(1, 2)
        mixed, _ = _attend(weights, f"{at}temporal_attn.", y, sizes)
        x = x + mixed.transpose(1, 2)
        mixed, attention = _attend(weights, f"{at}self_attn.", _norm(weights, f"{at}layer_norm1", x, sizes), sizes)
        x = x + mixed
        y = _linear(weights, f"{at}mlp.fc1", _norm(weights, f"{at}layer_norm2", x, sizes))
        x = x + _linear(weights, f"{at}mlp.fc2", y * torch.sigmoid(1.702 * y))
    return x, attention[..., 0, 1:].mean(2)


def _attend(weights: Weights, at: str, x: torch.Tensor, sizes: Sizes):
    """Self-attention over the last but one axis of [B, G, N, D]; the mixed values and the attention [B, G, H, N, N]."""
    heads = sizes.vision_heads
    names = ("q_proj", "k_proj", "v_proj")
    stacked = torch.cat([weights[f"{at}{name}.weight"] for name in names])
    bias = torch.cat([weights[f"{at}{name}.bias"] for name in names])
    q, k, v = F.linear(x, stacked, bias).unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    attention = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
    mixed = (attention @ v).transpose(2, 3).flatten(-2)
    return _linear(weights, f"{at}out_proj", mixed), attention


def _linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Weights, name: str, x: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], sizes.epsilon)
