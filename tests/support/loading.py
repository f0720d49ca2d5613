"""What the tests of the loader share: loading in float32 on the CPU, editing a checkpoint's settings, expecting a
refusal.
"""

import json

import pytest
import torch

from llava.model.builder import load_pretrained_model
from visiondrop.errors import VisionDropError

LAYERS = 2


def load(path, **arguments):
    """(tokenizer, model, image processor, context length) in float32 on the CPU."""
    return load_pretrained_model(
        path, None, "llava-v1.5-7b", **{"device_map": "cpu", "torch_dtype": torch.float32} | arguments
    )


def edit(path, replace=None, **fields):
    """Change fields of a JSON file, or all of it."""
    content = json.loads(path.read_text()) if replace is None else replace
    path.write_text(json.dumps(content | fields))


def refuses(words, call):
    """`call` raises one sentence with all of `words`."""
    with pytest.raises(VisionDropError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.endswith("."), message
    for word in words:
        assert word in message, message
