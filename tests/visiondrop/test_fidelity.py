"""VisionDrop against traces of the official implementation, on our class and on transformers'."""

from pathlib import Path

import numpy as np
import pytest
import torch

import visiondrop
from llava.model.builder import load_pretrained_model
from tests.support import models
from tests.support.checkpoints import write_hub, write_original

TRACES = Path(__file__).parents[1] / "support" / "golden" / "traces"


def load(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(TRACES / f"{name}.npz"))


class Native:
    """The contract's calls on our own class."""

    def __init__(self):
        self.model = models.native()
        self.ids, self.pixels = torch.tensor([models.prompt()]), models.pixels(0)

    def tokens(self) -> list[int]:
        out = self.model.generate(
            self.ids, images=self.pixels, image_sizes=[(336, 336)], do_sample=False, max_new_tokens=8
        )
        return out[0].tolist()

    def logits(self) -> np.ndarray:
        out = self.model(input_ids=self.ids, images=self.pixels, image_sizes=[(336, 336)])
        return out.logits[0, -1, :512].numpy()


class Hub(Native):
    """The same on transformers' class."""

    def __init__(self):
        self.model = models.hub()
        self.ids, self.pixels = torch.tensor([models.to_hub(models.prompt())]), models.pixels(0)

    def tokens(self) -> list[int]:
        out = self.model.generate(input_ids=self.ids, pixel_values=self.pixels, do_sample=False, max_new_tokens=8)
        return out[0, self.ids.shape[1] :].tolist()

    def logits(self) -> np.ndarray:
        return self.model(input_ids=self.ids, pixel_values=self.pixels).logits[0, -1, :512].numpy()


class FromFiles(Native):
    """Our own class, loaded from files in the original layout or in the hub's."""

    def __init__(self, path):
        loaded = load_pretrained_model(str(path), None, "llava-v1.5-7b", device_map="cpu", torch_dtype=torch.float32)
        self.model = loaded[1]
        self.ids, self.pixels = torch.tensor([models.prompt()]), models.pixels(0)


@pytest.fixture(scope="module", params=["native", "hub class", "original files", "hub files"])
def side(request, tmp_path_factory):
    if request.param == "native":
        return Native()
    if request.param == "hub class":
        return Hub()
    write = write_original if request.param == "original files" else write_hub
    return FromFiles(write(tmp_path_factory.mktemp("checkpoint")))


def test_unpruned_model_equals_official_llava(side):
    trace = load("llava_576_0")
    assert np.abs(side.logits() - trace["logits"]).max() <= 2e-5
    assert side.tokens() == trace["tokens"].tolist()


@pytest.mark.parametrize("tokens", [32, 64])
def test_visiondrop_equals_official_code(side, tokens):
    trace = load(f"visiondrop_{tokens}_0")
    with visiondrop.apply(side.model, method="visiondrop", tokens=tokens, report=True) as handle:
        assert side.tokens() == trace["tokens"].tolist()
        report = handle.report
        assert report.cache_lengths[0] == trace["prefill_length"].tolist()
        assert np.array_equal(report.positions[0], trace["decode_position"])
        assert np.abs(side.logits() - trace["logits"]).max() <= 2e-5

        stage = report.stages[0]
        assert stage.layer == "encoder" and stage.dominant[0][0] == -1
        assert stage.dominant[0][1:].tolist() == trace["enc_dominant"].tolist()
        assert stage.reference[0].tolist() == trace["enc_reference"].tolist()
        assert stage.merged[0].tolist() == trace["enc_merged"].tolist()
        assert stage.assignment[0].tolist() == trace["enc_assignment"].tolist()
        assert np.abs(stage.hidden[0].numpy() - trace["enc_tokens"]).max() <= 2e-5

        ids = trace["enc_origin"]
        for k, stage in enumerate(report.stages[1:], start=1):
            assert stage.layer == 8 * k
            assert stage.dominant[0].tolist() == ids[trace[f"stage{k}_dominant"]].tolist()
            assert stage.reference[0].tolist() == ids[trace[f"stage{k}_reference"]].tolist()
            assert stage.merged[0].tolist() == ids[trace[f"stage{k}_merged"]].tolist()
            assert stage.assignment[0].tolist() == trace[f"stage{k}_assignment"].tolist()
            assert np.abs(stage.hidden[0].numpy() - trace[f"stage{k}_visual_out"]).max() <= 2e-5
            assert np.abs(stage.scores[0].numpy() - trace[f"stage{k}_score"]).max() <= 1e-6
            ids = trace[f"stage{k}_origin"]
        assert k == 3
        assert report.tokens_per_layer[0] == handle.plan.tokens_per_layer()
