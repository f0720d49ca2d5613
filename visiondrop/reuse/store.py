"""What calls of `visiondrop.encode` have in common: prefixes, prepared pictures, and the tower's work on them."""

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from .prefix import Prefix
from .recent import Recent, fingerprint
from .tower import TowerMemory

PICTURE_BYTES = 256 << 20


class PrefixStore(Recent[Prefix]):
    """Prefixes by key; beside them, smaller, what other methods and prompts for the same picture share.

    Attributes:
        towers: states of pictures inside the vision tower.
    """

    def __init__(self, limit_bytes: int, picture_bytes: int = PICTURE_BYTES):
        """limit_bytes: most bytes of keys and values; picture_bytes: of prepared pictures, and again of tower states."""
        super().__init__(limit_bytes)
        self.towers = TowerMemory(picture_bytes)
        self._prepared: Recent[tuple[list[weakref.ref], Any]] = Recent(picture_bytes)

    def put(self, key: Hashable, value: Prefix, size: int | None = None) -> Prefix:
        """Hold a prefix, as far as the limit allows; returns it."""
        return super().put(key, value, value.bytes if size is None else size)

    def prepared(self, image: Any, makers: Sequence[Any], settings: Sequence[Any], make: Callable[[], Any]) -> Any:
        """What `make` makes of a PIL image, once; pixels need no preparation and are not held here.

        Args:
            makers: the objects that it uses, the same ones or it is made again; settings: what else it depends on.
        """
        if not isinstance(image, Image.Image):
            return make()
        makers = [maker for maker in makers if maker is not None]
        key = fingerprint(image, image.getexif().tobytes(), *settings)  # a camera's turn stands beside the pixels
        found = self._prepared.get(key)
        if found is None or [ref() for ref in found[0]] != makers:
            found = [weakref.ref(maker) for maker in makers], make()
            self._prepared.put(key, found, _bytes(found[1]))
        return found[1]


def _bytes(value: Any) -> int:
    """Bytes of all tensors in nested dictionaries and sequences."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(_bytes(item) for item in inside)
