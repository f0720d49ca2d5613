"""A small LLaVA-1.5-shaped checkpoint whose weights are a pure function of their names.

Every tensor is drawn by NumPy from a generator seeded with the CRC-32 of the tensor's
name, so any implementation can rebuild the same model without a file being shipped.

Shapes: CLIP ViT, 336 px, patch 14 (576 patches + [CLS]), 4 layers, width 64, 4 heads;
two-layer GELU projector; LLaMA, 32 layers, width 128, 4 heads (head_dim 32),
feed-forward 256, vocabulary 512.  The LLaVA feature layer is -2, "patch" features.

Names are those of the original LLaVA checkpoints (`model.layers.0.self_attn.q_proj.weight`,
`model.mm_projector.0.weight`, ...) and, for the vision tower, of the published CLIP checkpoints
(`vision_model.encoder.layers.0.self_attn.q_proj.weight`, ...).  The `vision_model.` level counts: where a
library's CLIP class has no such level (transformers 5), call `fill(tower.state_dict(), "vision_model.")`.
"""

import zlib

import numpy as np

VISION = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=336,
    patch_size=14,
    projection_dim=64,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
)
TEXT = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=32,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=512,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    hidden_act="silu",
)
MM_VISION_SELECT_LAYER = -2
IMAGE_TOKEN_INDEX = -200  # the placeholder of original LLaVA input_ids


def tensor(name, shape):
    """float32 array of `shape`, a function of `name` and `shape` alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    draw = rng.standard_normal(shape)
    if name.endswith("bias"):
        scale, shift = 0.02, 0.0
    elif "norm" in name or "layrnorm" in name:
        scale, shift = 0.1, 1.0
    elif "q_proj" in name or "k_proj" in name:
        scale, shift = (0.12 if "vision_model" in name else 0.10), 0.0
    elif "class_embedding" in name or "position_embedding" in name:
        scale, shift = 0.5, 0.0
    elif "patch_embedding" in name:
        scale, shift = 0.04, 0.0
    elif "mm_projector" in name:
        scale, shift = 0.12, 0.0
    elif "embed_tokens" in name or "lm_head" in name:
        scale, shift = 1.0 if "embed" in name else 0.1, 0.0
    else:
        scale, shift = 0.05, 0.0
    return (draw * scale + shift).astype(np.float32)


def fill(state_dict, prefix=""):
    """Overwrite every floating-point tensor of a torch `state_dict` in place, by `prefix` + name."""
    import torch

    for name, value in state_dict.items():
        if value.is_floating_point() and "inv_freq" not in name:
            value.copy_(torch.from_numpy(tensor(prefix + name, tuple(value.shape))).to(value.dtype))


def pixel_values(seed=0):
    """(3, 336, 336) float32: CLIP-normalised synthetic picture `seed` (blobs on a gradient)."""
    rng = np.random.default_rng(1000 + seed)
    y, x = np.mgrid[0:336, 0:336] / 336.0
    image = np.stack([x, y, (x + y) / 2]) * rng.uniform(0.3, 1.0, (3, 1, 1))
    for _ in range(6):
        cx, cy, r = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.04, 0.18)
        image = np.where((x - cx) ** 2 + (y - cy) ** 2 < r * r, rng.uniform(0, 1, (3, 1, 1)), image)
    image = np.clip(image + rng.normal(0, 0.03, image.shape), 0, 1)
    mean = np.array([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    std = np.array([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    return ((image - mean) / std).astype(np.float32)


def input_ids(seed=0, before=35, after=22):
    """Token ids of prompt `seed`: `before` ids, the image placeholder, `after` ids."""
    rng = np.random.default_rng(2000 + seed)
    ids = rng.integers(3, TEXT["vocab_size"], before + after).tolist()
    return [1] + ids[1:before] + [IMAGE_TOKEN_INDEX] + ids[before:]
