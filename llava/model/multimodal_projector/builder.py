"""The projector from vision features to token embeddings, named and numbered as in the original checkpoints."""

import re

from torch import nn

from visiondrop.errors import VisionDropError


def build_vision_projector(config) -> nn.Module:
    """`linear`, or `mlpNx_gelu`: N linear layers with GELU between them (parameters `0.`, `2.`, ...)."""
    kind = getattr(config, "mm_projector_type", "linear")
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    match = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if match is None:
        raise VisionDropError(f"mm_projector_type={kind!r}: allowed are 'linear' and 'mlpNx_gelu', e.g. 'mlp2x_gelu'")
    modules: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(1, int(match.group(1))):
        modules += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*modules)
