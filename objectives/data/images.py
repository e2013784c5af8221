"""The one decoder of images: upright, 8 bits deep, in sRGB, without transparency."""

import struct
import warnings
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageCms, ImageColor, UnidentifiedImageError

from bitfront.errors import InvalidSample
from objectives.data.image_folder import shown

FORMATS: Final = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000"),
    *("PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"),
)
"""The formats that are decoded, as Pillow names them; documents and vector graphics are not."""

WHITE: Final = "white"
MAX_PIXELS: Final = 1 << 27
"""The largest image, 134 megapixels: beyond it a small file may be made to fill the memory."""

READING: Final = 1
"""Goes up with every change of what an image is read as: results of another reading differ."""

_BEGINNINGS: Final = {
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "PNG": (b"\x89PNG",),
    "JPEG": (b"\xff\xd8",),
    "GIF": (b"GIF8",),
    "BMP": (b"BM",),
    "WEBP": (b"RIFF",),
}
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MIN_IS_WHITE = 258, 262, 0
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises on damaged files, whichever plug-in reads them.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, EOFError, struct.error, MemoryError, ZeroDivisionError),
    Image.DecompressionBombError,
)
_SAME_COLOUR = 2  # a profile that moves no colour further than this, of 255, counts as sRGB


def decode_image(content: bytes, where: str, background: str = WHITE) -> Image.Image:
    """An encoded image as a person sees it: upright, in sRGB, 8 bits a channel.

    The first frame of an animation or a multi-page file is taken. EXIF orientation is applied;
    grey values of 9 to 16 bits are scaled to 8; colours are brought from the image's own ICC
    profile to sRGB (a damaged profile counts as none); what is transparent shows the background.

    Args:
        content: The file's bytes.
        where: Where a person finds the image, for the message.
        background: A colour as CSS names it, such as `white` or `#808080`.

    Returns:
        The image in mode `RGB`.

    Raises:
        InvalidSample: It cannot be read, is larger than `MAX_PIXELS`, or does not say which of
            its values is white.
    """
    if not content:
        raise InvalidSample(f"the image {where} is empty (0 bytes): replace or remove it")
    if content.startswith(b"version https://git-lfs"):
        raise InvalidSample(
            f"the image {where} is a Git LFS pointer, not the image: run 'git lfs pull'"
        )
    try:
        # What Pillow only warns of (damaged EXIF, many pixels, lost tags) is dealt with here.
        with (
            warnings.catch_warnings(record=True, action="always") as warned,
            Image.open(BytesIO(content), formats=FORMATS) as image,
        ):
            _refuse_huge(image.size, where)
            _refuse_lost_tags(image, [str(warning.message) for warning in warned])
            image.load()
            return _as_seen(image, where, background)
    except UnidentifiedImageError as error:
        raise InvalidSample(f"the image {where} cannot be read: {_unknown(content)}") from error
    except _DAMAGED as error:
        raise InvalidSample(
            f"the image {where} cannot be read ({error}): replace or remove it"
        ) from error


def read_image(path: Path, background: str = WHITE) -> Image.Image:
    """The image of a file; see `decode_image`.

    Raises:
        InvalidSample: There is none, or it cannot be read.
    """
    return decode_image(read_content(path), shown(path), background)


def read_content(path: Path) -> bytes:
    """The encoded image that a file holds.

    Raises:
        InvalidSample: There is no such file, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidSample(
            f"the image {shown(path)} cannot be read: {error.strerror}; replace or remove it"
        ) from error


def _refuse_huge(size: tuple[int, int], where: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise InvalidSample(
            f"the image {where} has {width} x {height} pixels, more than "
            f"{MAX_PIXELS / 1e6:.0f} million: make it smaller or remove it"
        )


def _unknown(content: bytes) -> str:
    """Why no format was recognised, and what to do."""
    for form, beginnings in _BEGINNINGS.items():
        if content.startswith(beginnings):
            return (
                f"it begins like a {form}, but is damaged or of a kind that is not read; convert "
                "it to PNG or JPEG with 8 or 16 bits a channel, or remove it"
            )
    return (
        f"it is in none of the formats {', '.join(sorted(FORMATS))}; convert it to PNG or JPEG, "
        "or remove it"
    )


def _refuse_lost_tags(image: Image.Image, warned: Sequence[str]) -> None:
    """A TIFF without all of its tags may look like another image: on its side, in other colours.

    Raises:
        ValueError: Pillow left a tag out.
    """
    lost = [text for text in warned if not text.startswith("Metadata Warning")]
    if image.format == "TIFF" and lost:
        raise ValueError(f"a tag of its is damaged or cut off: {lost[0]}")


def _as_seen(image: Image.Image, where: str, background: str) -> Image.Image:
    alpha, opaque = _parted(image, where)
    shown = _in_srgb(opaque, image.info.get("icc_profile"))
    if alpha is not None:
        canvas = Image.new("RGB", shown.size, ImageColor.getrgb(background)[:3])
        canvas.paste(shown, mask=alpha)
        shown = canvas
    method = _UPRIGHT.get(_orientation(image))
    return shown if method is None else shown.transpose(method)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, which is upright, where there is none or it is damaged."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGED:
        return 1
    return found if isinstance(found, int) else 1


def _parted(image: Image.Image, where: str) -> tuple[Image.Image | None, Image.Image]:
    """The opacity (mode `L`; None where all is opaque), and the image without it, 8 bits deep."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return _shallow(image, where)
    if image.mode == "F":
        raise InvalidSample(
            f"the image {where} holds floating-point numbers and does not say which one is "
            "white: convert it to 8 or 16 bits"
        )
    if image.has_transparency_data:
        colours = "L" if image.mode in ("L", "LA") else "RGB"  # as its profile, if any, wants it
        whole = image.convert(f"{colours}A")
        return whole.getchannel("A"), whole.convert(colours)
    return None, image.convert("RGB") if image.mode in ("P", "PA") else image


def _shallow(image: Image.Image, where: str) -> tuple[Image.Image | None, Image.Image]:
    """Grey values of up to 16 bits as 8, and where the value that stands for nothing lies."""
    white = _white(image, where)
    values = np.asarray(image).astype(np.int64)
    scaled = (values * 255 * 2 + white) // (2 * white)  # rounded to the nearest
    if _tags(image).get(_PHOTOMETRIC) == _MIN_IS_WHITE:
        scaled = 255 - scaled
    shown = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    nothing = image.info.get("transparency")
    if not isinstance(nothing, int):
        return None, shown
    return Image.fromarray(np.where(values == nothing, 0, 255).astype(np.uint8)), shown


def _white(image: Image.Image, where: str) -> int:
    """The value that is white."""
    if image.format == "TIFF":
        bits = _tags(image).get(_BITS_PER_SAMPLE, 16)
        depth = int(bits[0] if isinstance(bits, tuple) else bits)
        if image.mode.startswith("I;16") and depth <= 16:
            return int((1 << depth) - 1)
    elif image.format in ("PNG", "PPM", "JPEG2000"):
        return 65535
    raise InvalidSample(
        f"the image {where} holds signed or 32-bit numbers and does not say which one is white: "
        "convert it to 8 or 16 bits"
    )


def _tags(image: Image.Image) -> dict[int, int | tuple[int, ...]]:
    """The tags of a TIFF; none of another format."""
    tags = getattr(image, "tag_v2", None) or {}
    return {number: tags[number] for number in (_BITS_PER_SAMPLE, _PHOTOMETRIC) if number in tags}


def _in_srgb(image: Image.Image, profile: object) -> Image.Image:
    """The opaque image in sRGB; without a usable profile its values are taken for sRGB's own."""
    if image.mode == "LAB":
        return _from_lab(image)
    if isinstance(profile, bytes) and profile:
        if image.mode not in ("L", "RGB", "CMYK"):
            image = image.convert("RGB")
        transform = _to_srgb(profile, image.mode)
        if transform is not None:
            found = ImageCms.applyTransform(image, transform)
            assert found is not None
            return found
    return image.convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    found = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert found is not None
    return found


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings colours of a profile to sRGB; None where nothing has to be done.

    A profile that is damaged, or made for other channels than the image has, counts as none.
    One of sRGB itself is left alone: rounding would move values by one.
    """
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "RGB":
            steps = np.linspace(0, 255, 9).astype(np.uint8)
            grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
            moved = ImageCms.applyTransform(Image.fromarray(grid), transform)
            if np.abs(np.asarray(moved).astype(int) - grid).max() <= _SAME_COLOUR:
                return None
    except (ImageCms.PyCMSError, *_DAMAGED):
        return None
    return transform
