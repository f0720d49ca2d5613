"""LanguageBind's video tower: CLIP's vision transformer whose layers also attend over time.

Modification against transformers' `CLIPEncoderLayer`: before a layer's own (spatial) attention, every patch position
adds a learned embedding of its frame number and attends to the same position in the other frames
(https://github.com/PKU-YuanGroup/Video-LLaVA, languagebind/video/modeling_video.py; parameter names as there).
"""

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from .modeling_clip import CLIPVisionTransformer


class TemporalEncoderLayer(CLIPEncoderLayer):
    """A CLIP layer that attends over time first.  `config.num_frames` is the number of frames of every video."""

    def __init__(self, config):
        super().__init__(config)
        self.frames = config.num_frames
        self.temporal_embedding = nn.Parameter(torch.zeros(1, config.num_frames, config.hidden_size))
        self.temporal_attn = CLIPAttention(config)
        self.temporal_layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        """[videos * frames, R, D] -> the same, R = patches and [CLS]."""
        return super().forward(self.over_time(hidden_states), attention_mask, **kwargs)

    def over_time(self, hidden: Tensor) -> Tensor:
        """Embedding of the frame number and attention over the frames, each row R by itself."""
        rows, width = hidden.shape[1:]
        through = hidden.view(-1, self.frames, rows, width).transpose(1, 2).reshape(-1, self.frames, width)
        if self.frames > 1:
            through = through + self.temporal_embedding
        through = through + self.temporal_attn(self.temporal_layer_norm1(through), attention_mask=None)[0]
        return through.view(-1, rows, self.frames, width).transpose(1, 2).reshape(hidden.shape)


class VideoVisionTransformer(CLIPVisionTransformer):
    """The video tower; `config.add_time_attn` false gives plain CLIP, frame by frame."""

    def __init__(self, config):
        super().__init__(config)
        if getattr(config, "add_time_attn", False):
            layers = [TemporalEncoderLayer(config) for _ in range(config.num_hidden_layers)]
            self.encoder.layers = nn.ModuleList(layers)
