"""Which dtype "auto" is on which machine."""

import pytest
import torch

from visiondrop import VisionDropError
from visiondrop.precision import precision


def machine(monkeypatch, card: bool, **has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)


@pytest.mark.parametrize(
    "card, has, wanted, words",
    [
        (True, {"amx_bf16": True}, torch.float16, "float16"),
        (False, {"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16, "AMX; --dtype float32"),
        (False, {"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16, "AVX512-BF16"),
        (False, {"avx512_f": True}, torch.float32, "float32"),
        (False, {}, torch.float32, "float32"),
    ],
)
def test_auto_is_what_this_machine_is_fast_in(monkeypatch, card, has, wanted, words):
    machine(monkeypatch, card, **has)
    dtype, told = precision()
    assert dtype is wanted and words in told
    assert precision("float32") == (torch.float32, "float32")


def test_a_torch_that_does_not_tell(monkeypatch):
    machine(monkeypatch, False)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert precision()[0] is torch.float32


def test_an_unknown_dtype_is_told():
    with pytest.raises(VisionDropError, match="did you mean 'bfloat16'"):
        precision("bfloat")
