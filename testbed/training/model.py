"""The testbed LVLM for training: LLaVA-1.5's forward pass over a flat dict of weights with LLaVA's own names.

    weights = init_weights(Sizes(), seed=0)                      # {"model.layers.0.self_attn.q_proj.weight": ..., ...}
    features, cls, _ = encode(weights, sizes, pixels, cells)     # CLIP tower up to layer -2
    hidden = decode(weights, sizes, features, layout)            # projector and LLaMA, many questions after one image

Letters: B images, V visual tokens, P prefix (text before the image plus V), Q questions per image, T tokens per
question, S = P + Q T, D width, H heads. Written for speed on a CPU: plain matmul attention (the fused kernels are
slow backwards there), one GEMM for q, k and v, and all questions of an image after one shared prefix. The same
weights give the same logits in transformers' own classes (tests/testbed/test_export.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from testbed.data.scenes import FULL_GRID, NO_COLOR, NO_DIGIT, NO_SHAPE, PATCH
from testbed.data.tokenizer import VOCABULARY

TOWER = "model.vision_tower.vision_tower.vision_model."
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """Widths and depths. The tower's last layer is built, but as in LLaVA (feature layer -2) nothing reads it."""

    vision_width: int = 128
    vision_layers: int = 6
    vision_heads: int = 4
    vision_mlp: int = 512
    width: int = 128
    layers: int = 12
    heads: int = 4
    mlp: int = 256
    vocabulary: int = len(VOCABULARY)
    rope_theta: float = 10000.0
    epsilon: float = 1e-5

    def as_dict(self) -> dict:
        """Plain values, as stored beside the weights."""
        return asdict(self)


@dataclass(frozen=True)
class Layout:
    """How one batch is packed.

    prefix_ids: text before the image, int64 [p]; question_ids: int64 [B, Q, T], padded on the right;
    visual_positions: RoPE positions of the visual tokens, int64 [V], or [B, V] where they differ; question_start: position of each question's
    first token.
    """

    prefix_ids: torch.Tensor
    question_ids: torch.Tensor
    visual_positions: torch.Tensor
    question_start: int


def init_weights(sizes: Sizes, seed: int) -> Weights:
    """Fresh float32 weights: residual outputs scaled down with depth, norms 1, biases 0.

    The upper half of the decoder starts as the identity (its residual outputs are 0): the curriculum adds it later.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}

    def normal(name: str, *shape: int, std: float = 0.02) -> None:
        weights[name] = torch.randn(shape, generator=generator) * std

    def linear(name: str, rows: int, columns: int, bias: bool, std: float) -> None:
        normal(f"{name}.weight", rows, columns, std=std)
        if bias:
            weights[f"{name}.bias"] = torch.zeros(rows)

    def norm(name: str, width: int, bias: bool) -> None:
        weights[f"{name}.weight"] = torch.ones(width)
        if bias:
            weights[f"{name}.bias"] = torch.zeros(width)

    v, d = sizes.vision_width, sizes.width
    std_v, std_d = v**-0.5, d**-0.5
    emb = f"{TOWER}embeddings."
    normal(f"{emb}class_embedding", v)
    normal(f"{emb}patch_embedding.weight", v, 3, PATCH, PATCH, std=(3 * PATCH * PATCH) ** -0.5)
    weights[f"{emb}position_embedding.weight"] = torch.cat([torch.zeros(1, v), 0.5 * _sincos(FULL_GRID, v)])
    norm(f"{TOWER}pre_layrnorm", v, True)
    norm(f"{TOWER}post_layernorm", v, True)
    for layer in range(sizes.vision_layers):
        at = f"{TOWER}encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            scale = (2 * sizes.vision_layers) ** -0.5 if name == "out_proj" else 1.0
            linear(f"{at}self_attn.{name}", v, v, True, std_v * scale)
        norm(f"{at}layer_norm1", v, True)
        norm(f"{at}layer_norm2", v, True)
        linear(f"{at}mlp.fc1", sizes.vision_mlp, v, True, std_v)
        linear(f"{at}mlp.fc2", v, sizes.vision_mlp, True, (sizes.vision_mlp * 2 * sizes.vision_layers) ** -0.5)
    linear("model.mm_projector.0", d, v, True, std_v)
    linear("model.mm_projector.2", d, d, True, std_d)
    normal("model.embed_tokens.weight", sizes.vocabulary, d, std=0.5)
    for layer in range(sizes.layers):
        at = f"model.layers.{layer}."
        residual = (2 * sizes.layers) ** -0.5 if layer < (sizes.layers + 1) // 2 else 0.0
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear(f"{at}self_attn.{name}", d, d, False, std_d * (residual if name == "o_proj" else 1.0))
        norm(f"{at}input_layernorm", d, False)
        norm(f"{at}post_attention_layernorm", d, False)
        linear(f"{at}mlp.gate_proj", sizes.mlp, d, False, std_d)
        linear(f"{at}mlp.up_proj", sizes.mlp, d, False, std_d)
        linear(f"{at}mlp.down_proj", d, sizes.mlp, False, sizes.mlp**-0.5 * residual)
    norm("model.norm", d, False)
    normal("lm_head.weight", sizes.vocabulary, d)
    return weights


HEADS = {"color": NO_COLOR + 1, "shape": NO_SHAPE + 1, "digit": NO_DIGIT + 1, "set": NO_COLOR * NO_SHAPE + NO_DIGIT}


def init_heads(sizes: Sizes, seed: int, rows: dict[str, int] = HEADS) -> Weights:
    """Readouts of the auxiliary losses; training only, never in the checkpoint. Names start with "aux."."""
    generator = torch.Generator().manual_seed(seed + 1)
    return {f"aux.{k}": torch.randn(n, sizes.vision_width, generator=generator) * 0.02 for k, n in rows.items()}


def encode(weights: Weights, sizes: Sizes, pixels: torch.Tensor, cells: torch.Tensor):
    """Patch features of the tower's layer -2.

    pixels: normalised [B, 3, side, side]; cells: places of the patches in the full 24 x 24 grid, raster order, int64
    [V]. Returns features [B, V, D], the [CLS] state [B, D] and the [CLS] row of that layer's attention, mean over
    heads [B, V].
    """
    batch, _, side, _ = pixels.shape
    grid, width = side // PATCH, sizes.vision_width
    emb = f"{TOWER}embeddings."
    patches = (
        pixels.reshape(batch, 3, grid, PATCH, grid, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, -1)
    )
    x = patches @ weights[f"{emb}patch_embedding.weight"].reshape(width, -1).T
    x = torch.cat([weights[f"{emb}class_embedding"].expand(batch, 1, width), x], 1)
    place = weights[f"{emb}position_embedding.weight"]
    x = x + torch.cat([place[:1], place[1:][cells]])
    x = _layer_norm(weights, f"{TOWER}pre_layrnorm", x, sizes)
    head = width // sizes.vision_heads
    for layer in range(sizes.vision_layers - 1):
        at = f"{TOWER}encoder.layers.{layer}."
        y = _layer_norm(weights, f"{at}layer_norm1", x, sizes)
        qkv = F.linear(y, *_stacked(weights, f"{at}self_attn.", ("q_proj", "k_proj", "v_proj")))
        q, k, v = qkv.view(batch, -1, 3, sizes.vision_heads, head).permute(2, 0, 3, 1, 4)
        attention = ((q * head**-0.5) @ k.transpose(-1, -2)).softmax(-1)
        mixed = (attention @ v).transpose(1, 2).reshape(x.shape)
        x = x + _linear(weights, f"{at}self_attn.out_proj", mixed)
        y = _linear(weights, f"{at}mlp.fc1", _layer_norm(weights, f"{at}layer_norm2", x, sizes))
        x = x + _linear(weights, f"{at}mlp.fc2", y * torch.sigmoid(1.702 * y))
    return x[:, 1:], x[:, 0], attention[:, :, 0, 1:].mean(1)


def decode(weights: Weights, sizes: Sizes, features: torch.Tensor, layout: Layout, probes=(), depth: int = 0):
    """Projector and decoder over packed questions.

    features: [B, V, D]; depth: how many layers are run, 0 for all. Returns the normed final states of the question
    tokens [B, Q, T, D], and a list of the normed states after each number of layers in `probes`, ascending.
    """
    x, shape, rope, mask = _embed(weights, sizes, features, layout)
    middle = []
    depth = depth or sizes.layers
    for layer in range(depth):
        x = _decoder_layer(weights, sizes, layer, x, shape, rope, mask, layer == depth - 1)
        if layer + 1 in probes:
            middle.append(_finish(weights, sizes, x if layer == depth - 1 else x[:, shape[0] :], shape))
    return _finish(weights, sizes, x, shape), middle


def decode_dropping(weights: Weights, sizes: Sizes, features: torch.Tensor, layout: Layout, drops: list):
    """Like `decode`, once per element of `drops`, with visual tokens removed (for measurements, never in training).

    drops: pairs (layer, index): once `layer` layers (0 .. layers - 1) have run, only the visual tokens `index` (int64
    [B, K], numbers 0 .. V-1) remain, at their own positions; index None keeps all. The layers before the drops are run
    once for all of them. Returns a list of states [B, Q, T, D] in the order of `drops`.
    """
    x, shape, rope, mask = _embed(weights, sizes, features, layout)
    found = [None] * len(drops)
    deepest = max(at for at, _ in drops)
    for layer in range(deepest + 1):
        for number, (at, index) in enumerate(drops):
            if at == layer:
                branch = (x, rope, shape) if index is None else _drop(x, rope, shape, len(layout.prefix_ids), index)
                found[number] = _run_from(weights, sizes, layer, *branch, mask)
        if layer < deepest:
            x = _decoder_layer(weights, sizes, layer, x, shape, rope, mask, last=False)
    return found


def _embed(weights: Weights, sizes: Sizes, features: torch.Tensor, layout: Layout):
    """Input states [B, S, D], their shape (P, Q, T), rotary tables and the causal mask inside a question."""
    batch, questions, length = layout.question_ids.shape
    table = weights["model.embed_tokens.weight"]
    visual = _linear(weights, "model.mm_projector.2", F.gelu(_linear(weights, "model.mm_projector.0", features)))
    before = table[layout.prefix_ids].expand(batch, -1, -1)
    x = torch.cat([before, visual, table[layout.question_ids.reshape(batch, -1)]], 1)
    places = layout.visual_positions
    rows = places.shape[:-1]
    positions = torch.cat(
        [
            torch.arange(before.shape[1], device=x.device).expand(*rows, -1),
            places,
            (layout.question_start + torch.arange(length, device=x.device)).repeat(questions).expand(*rows, -1),
        ],
        -1,
    )
    rope = rope_table(positions, sizes.width // sizes.heads, sizes.rope_theta, x.dtype)
    if rows:  # one table per picture: [B, 1, S, head], the same for all heads
        rope = tuple(table[:, None] for table in rope)
    mask = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
    return x, (before.shape[1] + visual.shape[1], questions, length), rope, mask


def _run_from(weights: Weights, sizes: Sizes, first: int, x: torch.Tensor, rope, shape, mask) -> torch.Tensor:
    """Layers `first` to the last one, and the final norm."""
    for layer in range(first, sizes.layers):
        x = _decoder_layer(weights, sizes, layer, x, shape, rope, mask, layer == sizes.layers - 1)
    return _finish(weights, sizes, x, shape)


def _finish(weights: Weights, sizes: Sizes, x: torch.Tensor, shape) -> torch.Tensor:
    """Normed states [B, Q, T, D] of question rows [B, Q T, D]."""
    return _rms_norm(weights, "model.norm", x, sizes).view(x.shape[0], *shape[1:], -1)


def rope_table(positions: torch.Tensor, head: int, theta: float, dtype: torch.dtype):
    """Cosines and signed sines of LLaMA's rotary embedding, each [*positions.shape, head]."""
    inverse = theta ** (-torch.arange(0, head, 2, device=positions.device).float() / head)
    angles = positions.float()[..., None] * inverse
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def _drop(x: torch.Tensor, rope, shape, start: int, index: torch.Tensor):
    """States, rotary tables and shape with the visual tokens `index` [B, K] only; `start` is the first one's place."""
    prefix, questions, length = shape
    fixed = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
    rows = torch.cat([fixed[:, :start], start + index.sort(1).values, fixed[:, prefix:]], 1)
    x = x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
    return x, tuple(table[rows][:, None] for table in rope), (start + index.shape[1], questions, length)


def _decoder_layer(
    weights: Weights, sizes: Sizes, layer: int, x: torch.Tensor, shape, rope, mask, last: bool
) -> torch.Tensor:
    """One LLaMA layer over [prefix | Q questions of T tokens]; only question rows come out of the `last`."""
    at = f"model.layers.{layer}."
    prefix, questions, length = shape
    batch, heads, head = x.shape[0], sizes.heads, sizes.width // sizes.heads
    stacked, _ = _stacked(weights, f"{at}self_attn.", ("q_proj", "k_proj", "v_proj"))
    # the norm's weight goes into the projection: [rows, D] instead of [B, S, D] products
    qkv = F.linear(_unit_rms(x, sizes), stacked * weights[f"{at}input_layernorm.weight"])
    q, k, v = qkv.view(batch, -1, 3, heads, head).permute(2, 0, 3, 1, 4)
    q, k = _rotate(q, rope) * head**-0.5, _rotate(k, rope)
    own = (batch, heads, questions, length, head)
    far = q[:, :, prefix:] @ k[:, :, :prefix].transpose(-1, -2)
    near = q[:, :, prefix:].reshape(own) @ k[:, :, prefix:].reshape(own).transpose(-1, -2) + mask
    joint = torch.cat([far.view(*own[:4], prefix), near], -1).softmax(-1)
    read = (joint[..., :prefix].reshape(batch, heads, -1, prefix) @ v[:, :, :prefix]).view(own)
    mixed = (read + joint[..., prefix:] @ v[:, :, prefix:].reshape(own)).reshape(batch, heads, -1, head)
    if last:
        x = x[:, prefix:]
    else:
        mixed = torch.cat([*_causal_chunks(q, k, v, prefix), mixed], 2)
    x = x + _linear(weights, f"{at}self_attn.o_proj", mixed.transpose(1, 2).reshape(x.shape))
    stacked, _ = _stacked(weights, f"{at}mlp.", ("gate_proj", "up_proj"))
    gate, up = F.linear(_unit_rms(x, sizes), stacked * weights[f"{at}post_attention_layernorm.weight"]).chunk(2, -1)
    return x + _linear(weights, f"{at}mlp.down_proj", F.silu(gate) * up)


def _causal_chunks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prefix: int, rows: int = 160
) -> list[torch.Tensor]:
    """Causal attention of the first `prefix` tokens, by blocks of rows: little of the masked half is computed."""
    mixed = []
    for start in range(0, prefix, rows):
        end = min(start + rows, prefix)
        scores = q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)
        future = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
        scores[..., start:].masked_fill_(future, float("-inf"))
        mixed.append(scores.softmax(-1) @ v[:, :, :end])
    return mixed


def _stacked(weights: Weights, at: str, names: tuple[str, ...]):
    """Weight and bias (or None) of several linear layers read as one."""
    bias = torch.cat([weights[f"{at}{n}.bias"] for n in names]) if f"{at}{names[0]}.bias" in weights else None
    return torch.cat([weights[f"{at}{n}.weight"] for n in names]), bias


def _linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _layer_norm(weights: Weights, name: str, x: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], sizes.epsilon)


def _rms_norm(weights: Weights, name: str, x: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    return _unit_rms(x, sizes) * weights[f"{name}.weight"]


def _unit_rms(x: torch.Tensor, sizes: Sizes) -> torch.Tensor:
    return _UnitRms.apply(x, sizes.epsilon)


class _UnitRms(torch.autograd.Function):
    """x / rms(x) with a backward pass written out: four times faster on a CPU than the one torch derives."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        inverse = (length.square() / x.shape[-1] + epsilon).rsqrt().to(x.dtype)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        y, inverse = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1).mul_(inverse), None


def _rotate(x: torch.Tensor, rope) -> torch.Tensor:
    cos, sin = rope
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin


def _sincos(grid: int, width: int) -> torch.Tensor:
    """Fixed 2-D sine and cosine positions as a start for the learned ones, [grid * grid, width]."""
    inverse = 100.0 ** (-torch.arange(width // 4).float() / (width // 4))
    angles = torch.arange(grid).float()[:, None] * inverse
    row = torch.cat([angles.sin(), angles.cos()], -1)
    return torch.cat([row[:, None].expand(-1, grid, -1), row[None].expand(grid, -1, -1)], -1).reshape(
        grid * grid, width
    )
