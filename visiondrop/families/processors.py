"""The processor of a checkpoint of transformers, also where torchvision, which only its videos need, is missing."""

import inspect
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, processing_utils
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from ..errors import VisionDropError


def load_processor(path: str, **more: Any) -> Any:
    """The processor in a folder or of a hub id.

    Without torchvision its parts are put together without the one for videos; videos are then refused when they come.

    Args:
        more: as for `AutoProcessor.from_pretrained`, e.g. `max_pixels`.
    """
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(path, **more)
    kind = _class_of(path)
    if "video_processor" not in inspect.signature(kind.__init__).parameters:
        return AutoProcessor.from_pretrained(path, **more)
    settings, _ = kind.get_processor_dict(path)
    named = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs", "args"}
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(path, **more),
        "tokenizer": AutoTokenizer.from_pretrained(path),
        "video_processor": None,
    }
    rest = {name: value for name, value in settings.items() if name in named and name not in parts}
    return _pictures_only(kind)(**parts, **rest)


def _class_of(path: str) -> Any:
    config = AutoConfig.from_pretrained(path)
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise VisionDropError(f"transformers knows no processor for model type {config.model_type!r} ({path})")
    return processing_utils.transformers_module.__dict__.get(name) or getattr(
        processing_utils.transformers_module, name
    )


def _pictures_only(kind: Any) -> type:
    """`kind` that may be made without a processor for videos."""

    class PicturesOnly(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor" and argument is None:
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

        def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
            if videos is not None:
                raise VisionDropError(
                    f"videos for {kind.__name__} need torchvision, which is not installed: pip install torchvision (the "
                    "version that goes with the installed torch); pictures need none"
                )
            return super().__call__(images=images, text=text, **kwargs)

    PicturesOnly.__name__ = PicturesOnly.__qualname__ = kind.__name__
    return PicturesOnly
