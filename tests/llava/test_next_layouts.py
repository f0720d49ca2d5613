"""LLaVA-NeXT: crops, unpadding and order of the unpruned model against transformers and loops."""

import math

import numpy as np
import pytest
import torch
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import unpad_image

import visiondrop
from llava import anyres
from llava.mm_utils import process_images
from llava.model import LlavaLlamaForCausalLM
from tests.support import models, next_models
from visiondrop.errors import VisionDropError

SIZES = [
    (640, 480),
    (480, 640),
    (336, 336),
    (672, 672),
    (1200, 300),
    (300, 1200),
    (1000, 400),
    (50, 50),
    (37, 211),
    (2000, 90),
]


@pytest.fixture(scope="module")
def native():
    return next_models.native(4)


@pytest.fixture(scope="module")
def hub():
    return next_models.hub(4)


@pytest.mark.parametrize("size", SIZES)
def test_crops_are_those_of_transformers_bit_for_bit(native, size):
    image = next_models.picture(*size)
    stock = LlavaNextImageProcessorPil(
        size={"shortest_edge": next_models.SIDE},
        crop_size={"height": next_models.SIDE, "width": next_models.SIDE},
        image_grid_pinpoints=[[h, w] for w, h in next_models.pinpoints()],
    )
    expected = torch.as_tensor(np.asarray(stock.preprocess(image, return_tensors="pt")["pixel_values"][0]))
    found = process_images([image], next_models.processor(), native.config)[0]
    assert found.shape == expected.shape and torch.equal(found, expected)


def test_best_resolution_is_the_first_of_the_largest():
    def stated(size, resolutions):  # the original's search, as a loop
        best, most, least = None, 0, math.inf
        for width, height in resolutions:
            scale = min(width / size[0], height / size[1])
            used = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
            if used > most or (used == most and width * height - used < least):
                best, most, least = (width, height), used, width * height - used
        return best

    rng = np.random.default_rng(0)
    sizes = [(w, h) for w in range(1, 400, 23) for h in range(1, 400, 23)] + [
        tuple(s) for s in rng.integers(1, 3000, (500, 2))
    ]
    for size in sizes:
        assert anyres.best_resolution(size, list(anyres.PINPOINTS)) == stated(size, anyres.PINPOINTS), size


@pytest.mark.parametrize("size", SIZES)
def test_order_of_tokens_is_that_of_transformers(native, hub, size):
    crops = anyres.describe_crops(native.config, None, size)
    units, patches = crops.shape.units, crops.shape.patches
    numbers = torch.arange(units * patches).view(units, patches, 1)
    packed, lengths = hub.model.pack_image_features([numbers], [size[::-1]], "default", torch.tensor([-1]))
    assert lengths.tolist() == [crops.shape.tokens]
    assert torch.equal(packed[0][:, 0], crops.ids.clamp(min=-1))
    newlines = crops.ids[crops.ids < 0]
    rows = -1 - units - newlines  # canvas rows: every visible one once, from top to bottom
    assert rows.tolist() == list(range(rows[0], rows[0] + len(rows))) and rows[0] >= 0


def test_a_few_sizes_differ_from_transformers_by_its_rounding():
    # 47 * (48 / 752) is a hair below 3 in floating point; transformers rounds it up, the original cuts it off.
    rows, columns = anyres.unpadded((752, 47), 48, 48)
    assert (rows, columns) == (range(23, 25), range(48))
    assert unpad_image(torch.zeros(1, 48, 48), (47, 752)).shape == (1, 4, 48)


@pytest.mark.parametrize("size", [(640, 480), (1200, 300), (37, 211)])
def test_unpruned_model_equals_transformers(native, hub, size):
    images, sizes = next_models.inputs(native, size)
    row = models.prompt()
    found = native(input_ids=torch.tensor([row]), images=images, image_sizes=sizes).logits
    expected = hub(**next_models.to_hub(native, images, sizes, [row])).logits[..., :512]
    assert found.shape == expected.shape and (found - expected).abs().max() <= 1e-5


def test_fixed_layout_has_five_crops_and_no_newline():
    model = next_models.native(2, side=336)
    anyres.use_layout(model, "fixed-2880")
    images, sizes = next_models.inputs(model, (1200, 300), (50, 60))
    assert images.shape == (2, 5, 3, 336, 336)
    pictures = model.pictures(images, sizes)
    assert {p.shape.source for p in pictures} == {"fixed-2880"} and {p.shape.tokens for p in pictures} == {2880}
    assert sorted(pictures[0].ids.tolist()) == list(range(2880)) and pictures[0].grid == (2, 2)
    # The first row of the canvas runs across both upper tiles.
    assert pictures[0].ids[576:624].tolist() == [*range(576, 600), *range(1152, 1176)]
    anyres.use_layout(model, "anyres")
    assert model.visual_shape().tokens == 576 + 48 * 49 == 2928 and anyres.layout_name(model.config) == "anyres"


def test_padding_may_stay_without_newlines(native):
    native.config.mm_patch_merge_type = "spatial"
    try:
        crops = anyres.describe_crops(native.config, None, (1200, 300))
        assert crops.shape.source == "anyres-padded" and sorted(crops.ids.tolist()) == list(range(4 * 64))
    finally:
        native.config.mm_patch_merge_type = "spatial_unpad"


def test_an_image_without_tiles_ends_with_a_newline(native):
    features, _ = native.encode_images([models.pixels(0)[0, :, : next_models.SIDE, : next_models.SIDE]])
    assert len(features[0]) == 65 and torch.equal(features[0][-1], native.model.image_newline)


@pytest.mark.parametrize(
    "change, images, sizes, word",
    [
        ({}, (1, 4), [(300, 300)], "is cut into 5"),
        ({"image_aspect_ratio": "anyres_max_9"}, (1, 5), [(300, 300)], "only 'anyres'"),
        ({}, (1, 5), None, "image_sizes"),
        ({}, (1, 5), [(100, 100)] * 2, "2 image_sizes for 1 images"),
        ({"mm_patch_merge_type": "flat"}, (1, 5), [(300, 300)], "spatial_unpad"),
        ({"image_grid_pinpoints": "nonsense"}, (1, 5), [(300, 300)], "pairs"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(native, change, images, sizes, word):
    before = {name: getattr(native.config, name) for name in change}
    try:
        for name, value in change.items():
            setattr(native.config, name, value)
        with pytest.raises(VisionDropError, match=word):
            native(
                input_ids=torch.tensor([models.prompt()]), images=torch.zeros(*images, 3, 112, 112), image_sizes=sizes
            )
    finally:
        for name, value in before.items():
            setattr(native.config, name, value)


def test_layout_of_a_plain_model_is_refused():
    with pytest.raises(VisionDropError, match="no LLaVA-NeXT"):
        anyres.use_layout(models.native(2), "fixed-2880")


def test_rows_end_with_a_newline_only_where_the_checkpoint_has_one():
    side = 2 * next_models.SIDE
    model = next_models.native(2, mm_patch_merge_type="spatial", image_grid_pinpoints=[[side, side]])
    with pytest.raises(VisionDropError, match="image_newline.*'fixed-2880'"):
        anyres.use_layout(model, "anyres")
    with pytest.raises(VisionDropError, match="allowed are 'anyres' and 'fixed-2880'"):
        anyres.use_layout(model, "padded")
    images, sizes = next_models.inputs(model, (300, 200))
    assert anyres.layout_name(model.config) == "fixed-320" and len(model.encode_images(images, sizes)[0][0]) == 320
    # By hand, past `use_layout`: every way to use it, whatever the method would keep of the newlines.
    model.config.mm_patch_merge_type = "spatial_unpad"
    for method in ("none", "visiondrop"):
        with pytest.raises(VisionDropError, match="image_newline"), visiondrop.apply(model, method=method, tokens=80):
            model(input_ids=torch.tensor([models.prompt()]), images=images, image_sizes=sizes)


def test_a_model_that_was_not_loaded_has_defined_newlines():
    assert not LlavaLlamaForCausalLM(next_models.native(2).config).model.image_newline.any()
