"""The images of samples, each decoded once in a process as long as there is room for them."""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass

from PIL import Image

from objectives.data.byte_file import ByteFile, Span
from objectives.data.images import WHITE, decode_image
from objectives.data.sample import Sample


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Where an image lies in the file, and what it is."""

    span: Span
    mode: str
    size: tuple[int, int]


class DecodedImages:
    """Decodes images, and keeps them for whoever asks next.

    Attributes:
        file: Where they go, and what else of the samples memory has no room for.
    """

    def __init__(self, file: ByteFile | None = None) -> None:
        self.file = file or ByteFile()
        self._decoded: dict[Hashable, _Decoded] = {}
        self._last: tuple[Hashable, Image.Image] | None = None

    def open(
        self, sample: Sample, where: str, background: str = WHITE, *, again: bool = True
    ) -> Image.Image:
        """The image of a sample as `decode_image` gives it.

        Args:
            sample: The sample.
            where: Where a person finds it, for messages.
            background: What transparent parts show.
            again: Whether it may be asked for again.

        Raises:
            InvalidSample: It cannot be read.
        """
        encoded = sample.encoded
        name = hashlib.sha256(encoded).digest() if isinstance(encoded, bytes) else encoded
        key = name, background
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        known = self._decoded.get(key)
        if known is not None:
            image = Image.frombytes(known.mode, known.size, bytes(self.file.get(known.span)))
        else:
            image = decode_image(sample.read(), where, background)
            if again:
                self._put(key, image)
        self._last = key, image
        return image

    def _put(self, key: Hashable, image: Image.Image) -> None:
        span = self.file.put(image.tobytes())
        if span is not None:
            self._decoded[key] = _Decoded(span, image.mode, image.size)
