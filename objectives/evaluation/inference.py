"""A configuration at work on a person's own pictures."""

from pathlib import Path

from PIL.Image import Image

from bitfront.errors import InvalidSample
from objectives.data.sources import decode_image


def open_picture(path: Path) -> Image:
    """The picture of a file, in RGB.

    Raises:
        InvalidSample: There is none, or it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidSample(f"the picture {path} cannot be read: {error.strerror}") from error
    return decode_image(content, str(path))
