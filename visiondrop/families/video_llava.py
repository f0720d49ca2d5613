"""transformers' `VideoLlavaForConditionalGeneration`: as `hub_llava`, with videos beside images.

The hub conversion of Video-LLaVA is another model than the original: its video tower is plain CLIP, the original's
attends over time as well.  The report's encoder stage lists all images of a batch, then its videos, in the order in
which the model encodes them; its decoder stages follow the prompt.
"""

import functools
import inspect
import warnings
from collections.abc import Callable

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..compat import Model
from ..plans.shape import VisualShape
from ..pruner import Pruner
from ..stack.layout import Image
from ..tower.units import Picture, tower_ids
from .llava import HubLlavaAdapter
from .registry import register

FRAMES = 8  # budgets are stated for eight frames


@register("VideoLlavaForConditionalGeneration")
class HubVideoLlavaAdapter(HubLlavaAdapter):
    """Attaches a pruner to one `VideoLlavaForConditionalGeneration`."""

    pixel_names = ("pixel_values", "pixel_values_images", "pixel_values_videos")

    def _tower(self):
        return getattr(self.inner.image_tower, "vision_model", self.inner.image_tower)

    @property
    def video_tower(self) -> Model:
        """Of the videos; pictures have a tower of their own."""
        return getattr(self.inner.video_tower, "vision_model", self.inner.video_tower)

    def feature_calls(self) -> dict[str, Callable]:
        """The encoder stage, around `get_image_features` and `get_video_features`."""
        return {
            **super().feature_calls(),
            "get_video_features": self._wrap_videos(self.inner.get_video_features),
        }

    def clip(self) -> str | None:
        """LanguageBind's towers were trained beside a text half that is not OpenAI's."""
        return None

    def shape(self) -> VisualShape:
        """An ordinary video."""
        return self._shape(FRAMES)

    def _shape(self, frames: int) -> VisualShape:
        """A video of that many frames, each with its [CLS]; 0 = an image, which has the budget of one frame."""
        config = self.model.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        extra = int(frames > 0 or config.vision_feature_select_strategy == "full")
        return VisualShape(
            layers=config.text_config.num_hidden_layers,
            patches=patches,
            units=max(1, frames),
            nominal_units=FRAMES,
            length=max(1, frames) * (patches + extra),
            kind="video" if frames else "image",
            source="video-without-temporal-attention" if frames else "pad",
            **self.tower_facts(),
        )

    def attach(self, pruner: Pruner) -> Callable[[], None]:
        """Install the hooks; returns the undo."""
        warnings.warn(
            "VideoLlavaForConditionalGeneration has no temporal attention in its video tower, unlike the original "
            "Video-LLaVA (llava.model.builder loads it): it is a different model",
            stacklevel=4,
        )
        return super().attach(pruner)

    def pictures(self, arguments: dict) -> list[Picture]:
        """The images of a call of `get_image_features`."""
        shape = self._shape(0)
        ids = tower_ids(1, shape.patches, cls=True) if shape.tokens > shape.patches else None
        return [Picture(shape, p[None], ids=ids) for p in self._given(arguments)]

    def _wrap_features(self, stock):
        encode = super()._wrap_features(stock)

        @functools.wraps(stock)
        def get_image_features(*args, **kwargs):
            output = encode(*args, **kwargs)
            if isinstance(output.pooler_output, list):
                output.pooler_output = torch.stack(output.pooler_output)
            return output

        return get_image_features

    def _wrap_videos(self, stock):
        signature = inspect.signature(stock)

        @functools.wraps(stock)
        def get_video_features(*args, **kwargs):
            arguments = signature.bind(*args, **kwargs).arguments
            pixels = arguments["pixel_values_videos"]
            shape = self._shape(pixels.shape[1])
            ids = tower_ids(shape.units, shape.patches, cls=True)
            pictures = [Picture(shape, video, ids=ids) for video in pixels]
            pictures = self._asked(pictures, self.model.config.video_token_id)
            if self.pruner.plan_for(shape).encoder is not None:
                layer = arguments.get("vision_feature_layer")
                output, self.now.videos = self._encode(pictures, self.video_tower, layer, first=len(self.now.images))
                output.pooler_output = torch.stack(output.pooler_output)
            else:
                output = stock(*args, **kwargs)
                # One row per video, so that beams repeat videos, not frames.
                rows = output.pooler_output
                output = BaseModelOutputWithPooling(
                    last_hidden_state=output.last_hidden_state, pooler_output=rows.view(len(pixels), -1, rows.shape[-1])
                )
                self.now.videos = [Image(shape, ids, self.pruner.seed_of(p.pixels)) for p in pictures]
            self.now.pixels = [*self.now.pixels, *pixels]
            self._check_places(*self._kinds()[1])
            return output

        return get_video_features

    def _note_inputs(self, module, args, kwargs) -> None:
        if not kwargs.get("mm_encoder_outputs"):
            self.now.forget()
        super()._note_inputs(module, args, kwargs)

    def _kinds(self) -> list[tuple[int, list[Image]]]:
        return [*super()._kinds(), (self.model.config.video_token_id, self.now.videos)]

    def _wrap_generate(self, stock):
        guarded = super()._wrap_generate(stock)

        @functools.wraps(stock)
        def generate(*args, **kwargs):
            self.now.forget()
            return guarded(*args, **kwargs)

        return generate
