"""Encoder methods on the frames of a video: every frame keeps its share, alike in both classes and in batches."""

import pytest
import torch

import visiondrop
from tests.support import clip, models, video_models

pytestmark = pytest.mark.filterwarnings("ignore:VideoLlavaForConditionalGeneration has no temporal")
METHODS = {
    "hiprune": dict(tokens=64),
    "vscan": dict(keep="32,60"),
    "cdpruner": dict(tokens=64, clip=(clip.model(), clip.tokenizer)),
    "flowcut": dict(tokens=64),
}
FRAMES, PATCHES = video_models.FRAMES, video_models.PATCHES


@pytest.mark.parametrize("method", METHODS)
def test_frames_share_the_budget_alike_in_both_classes(method):
    native, hub = video_models.native(4, temporal=False), video_models.hub(4)
    videos, questions = [video_models.video(0), video_models.video(1)], [clip.QUESTIONS[0], clip.QUESTIONS[3]]
    rows = [[5, 6, *[-200] * FRAMES, 7, 8, 9], [5, *[-200] * FRAMES, 7]]
    ids, mask = models.pad(rows)
    with visiondrop.apply(native, method, report=True, **METHODS[method]) as handle, handle.questions(questions):
        wanted = native(input_ids=ids, attention_mask=mask, images=videos).logits[:, -1]
        kept = [[stage.kept(i).tolist() for stage in handle.report.stages] for i in range(2)]
        each = torch.tensor(kept[0][0]) // PATCHES
        assert each.bincount(minlength=FRAMES).tolist() == [len(each) // FRAMES] * FRAMES
        for i, row in enumerate(rows):
            with handle.questions([questions[i]]):
                one = native(input_ids=torch.tensor([row]), images=[videos[i]]).logits[0, -1]
            assert [stage.kept().tolist() for stage in handle.report.stages] == kept[i]
            assert (one - wanted[i]).abs().max() <= 1e-5
    wide = [[t for id in row for t in ([id] if id >= 0 else [video_models.VIDEO_ID] * (PATCHES + 1))] for row in rows]
    ids, mask = models.pad(wide)
    pixels = torch.stack([video.transpose(0, 1) for video in videos])
    with visiondrop.apply(hub, method, report=True, **METHODS[method]) as handle, handle.questions(questions):
        got = hub(input_ids=ids, attention_mask=mask, pixel_values_videos=pixels).logits[:, -1]
        assert [[stage.kept(i).tolist() for stage in handle.report.stages] for i in range(2)] == kept
    assert (got[:, : wanted.shape[1]] - wanted).abs().max() <= 1e-5


def test_the_towers_have_another_text_half_than_openais():
    for model in (video_models.native(2), video_models.hub(2)):
        with visiondrop.apply(model, "cdpruner", tokens=64) as handle, handle.questions(["What?"]):
            assert handle.pruner.reader.default is None
