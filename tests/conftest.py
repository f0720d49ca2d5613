"""Shared settings: one thread per process keeps the small models fast and the machine usable."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_gradients():
    """Tests of inference code need no graph."""
    with torch.no_grad():
        yield
