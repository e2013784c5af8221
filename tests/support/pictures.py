"""Encoded pictures of any kind, each with what another library reads in it.

Pillow, which the decoder is built on, writes most of them; libvips writes those that Pillow
cannot. libvips reads them all, with decoders of its own for orientation, depth, colour and
transparency. Where it knows no format, the picture is one without loss, and its pixels are known.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pyvips
from hypothesis import strategies as st
from PIL import Image, ImageCms

Choices = Any

ORIENTATION = 0x0112
# How the first row and column of what is stored lie in what a person sees (TIFF 6.0, page 36).
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}


@dataclass(frozen=True)
class Picture:
    """An encoded picture.

    Attributes:
        content: The file's bytes.
        suffix: What a file of it is called.
        pixels: `(h, w, 3)` uint8, what a person sees on white; None where the file does not say
            which of its values is white, so that it must be refused.
        kind: What it is, for a failing test's message.
    """

    content: bytes = field(repr=False)
    suffix: str
    pixels: np.ndarray | None = field(repr=False)
    kind: str


@cache
def profiles() -> dict[str, bytes]:
    """ICC profiles: sRGB itself, a wider one, one whose red is blue, greys, print colours."""
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    swapped = bytearray(srgb)
    red, blue = swapped.find(b"rXYZ", 128), swapped.find(b"bXYZ", 128)
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    stored = {
        name: bytes(pyvips.Operation.call("profile_load", name)) for name in ("p3", "sgrey", "cmyk")
    }
    light = bytearray(stored["sgrey"])
    curve = light.find(b"para")
    light[curve + 12 : curve + 16] = int(1.2 * 65536).to_bytes(4, "big")  # its exponent
    return {"srgb": bytes(srgb), "swapped": bytes(swapped), "light": bytes(light), **stored}


def reference_pixels(content: bytes) -> np.ndarray:
    """What libvips shows of an encoded picture: upright, in sRGB, on white.

    Raises:
        pyvips.Error: It cannot read it.
    """
    image = pyvips.Image.new_from_buffer(content, "", fail_on="truncated").autorot()
    has_profile = image.get_typeof("icc-profile-data") != 0
    if image.interpretation == "cmyk" and not has_profile:
        return _printed(image)
    if has_profile:
        image = image.icc_transform("srgb", embedded=True, intent="perceptual")
    else:
        image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=[255] * (image.bands - 1))
    if image.bands == 1:
        image = image.bandjoin([image, image])
    pixels: np.ndarray = image.cast("uchar").numpy()
    return pixels


def _printed(image: pyvips.Image) -> np.ndarray:
    """Print colours without a profile: each ink takes its share of what black leaves."""
    ink = image.numpy().astype(float) / (65535 if image.format == "ushort" else 255)
    shown = (1 - ink[..., :3]) * (1 - ink[..., 3:4])
    pixels: np.ndarray = np.rint(shown * 255).astype(np.uint8)
    return pixels


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def values(choices: Choices, channels: int, highest: int = 255) -> np.ndarray:
    """`(h, w, channels)` values of a small picture."""
    sides = st.integers(1, 20)
    generator = np.random.default_rng(choices.draw(st.integers(0, 2**32 - 1)))
    shape = (choices.draw(sides), choices.draw(sides), channels)
    found = generator.integers(0, highest + 1, shape)
    return found.astype(np.uint8 if highest < 256 else np.uint16)


_LOSSLESS: dict[str, dict[str, object]] = {"WEBP": {"lossless": True, "exact": True}}
_EXACT = ("PNG", "TIFF", "WEBP", "GIF")
_SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif"}
_CHANNELS = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "P": 3}
_ORIENTED = ("PNG", "TIFF", "WEBP", "JPEG")


def in_mode(pixels: np.ndarray, mode: str, colours: int = 256) -> Image.Image:
    """Values as an image of a mode of Pillow."""
    if mode == "1":
        return Image.fromarray(pixels[..., 0]).convert("1")
    if mode == "P":
        return Image.fromarray(pixels).quantize(colours)
    if mode == "CMYK":
        height, width, _ = pixels.shape
        return Image.frombytes("CMYK", (width, height), pixels.tobytes())
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels)


def _described(choices: Choices, form: str, profile_names: tuple[str, ...]) -> dict[str, Any]:
    """What a file says beside its values: an orientation and a profile."""
    options: dict[str, Any] = {}
    if form in _ORIENTED and choices.draw(st.booleans()):
        exif = Image.Exif()
        exif[ORIENTATION] = choices.draw(st.integers(1, 8))
        options["exif"] = exif
    name = choices.draw(st.sampled_from((None, *profile_names)))
    if name is not None:
        options["icc_profile"] = profiles()[name]
    return options


def _by_pillow(choices: Choices) -> Picture:
    form = choices.draw(st.sampled_from(_EXACT))
    mode = choices.draw(st.sampled_from(sorted(_CHANNELS)))
    if form == "WEBP" and mode in ("1", "P"):
        mode = "RGB"
    image = in_mode(values(choices, _CHANNELS[mode]), mode, choices.draw(st.integers(2, 256)))
    names: tuple[str, ...] = ("srgb", "p3", "swapped") if mode in ("RGB", "RGBA") else ()
    names = ("sgrey", "light") if mode in ("L", "LA") and form in ("PNG", "TIFF") else names
    options = {
        **_LOSSLESS.get(form, {}),
        **_described(choices, form, () if form == "GIF" else names),
    }
    if form == "PNG" and mode in ("L", "RGB") and choices.draw(st.booleans()):
        seen = image.getpixel((0, 0))
        options["transparency"] = seen
    if form == "PNG" and mode == "P" and choices.draw(st.booleans()):
        options["transparency"] = choices.draw(st.binary(min_size=1, max_size=8))
    if form == "TIFF" and mode != "1":
        options["compression"] = choices.draw(
            st.sampled_from([None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
        )
    if "transparency" not in options and choices.draw(st.integers(0, 3)) == 0:
        further = Image.new("RGB", image.size, (1, 200, 3)).convert(image.mode)
        options |= {"save_all": True, "append_images": [further]}
    content = encoded(image, form, **options)
    kind = f"{form} {mode} {sorted(options)}"
    return Picture(
        content, _SUFFIXES.get(form, f".{form.lower()}"), reference_pixels(content), kind
    )


def _photo(choices: Choices) -> Picture:
    """A JPEG or an AVIF: with loss, so every decoder may differ a little."""
    mode = choices.draw(st.sampled_from(["L", "RGB", "CMYK"]))
    image = in_mode(values(choices, {"L": 1, "RGB": 3, "CMYK": 4}[mode]), mode)
    names = {"L": ("sgrey", "light"), "RGB": ("srgb", "p3", "swapped"), "CMYK": ("cmyk",)}[mode]
    options = _described(choices, "JPEG", names)
    options["quality"] = choices.draw(st.integers(30, 100))
    options["progressive"] = "icc_profile" not in options and choices.draw(st.booleans())
    if mode == "RGB":
        options["subsampling"] = choices.draw(st.sampled_from([0, 1, 2]))
    content = encoded(image, "JPEG", **options)
    return Picture(content, ".jpg", reference_pixels(content), f"JPEG {mode} {sorted(options)}")


def _deep(choices: Choices) -> Picture:
    """16 bits a channel, as Pillow cannot write them."""
    channels = choices.draw(st.sampled_from([1, 3, 4]))
    interpretation = "grey16" if channels == 1 else "rgb16"
    array = values(choices, channels, 65535)
    image = pyvips.Image.new_from_array(array).copy(interpretation=interpretation)
    suffix = choices.draw(st.sampled_from([".png", ".tif"]))
    options: dict[str, Any] = {}
    if suffix == ".png":
        options["interlace"] = choices.draw(st.booleans())
    else:
        options["compression"] = choices.draw(st.sampled_from(["none", "lzw", "deflate"]))
        options["tile"] = choices.draw(st.booleans())
        options["bigtiff"] = choices.draw(st.booleans())
    if choices.draw(st.booleans()):
        image = image.copy()
        image.set_type(pyvips.GValue.gint_type, "orientation", choices.draw(st.integers(1, 8)))
    content = bytes(image.write_to_buffer(suffix, **options))
    return Picture(
        content, suffix, reference_pixels(content), f"16 bits x {channels} {suffix} {options}"
    )


def _shallow(choices: Choices) -> Picture:
    """Greys of 1, 2 and 4 bits, interlaced files, tiles and strips, white as the least value."""
    channels = choices.draw(st.sampled_from([1, 2, 3, 4]))
    array = values(choices, channels)
    image = pyvips.Image.new_from_array(array)
    image = image.copy(interpretation="b-w" if channels < 3 else "srgb")
    suffix = choices.draw(st.sampled_from([".png", ".tif"]))
    options: dict[str, Any] = {}
    if suffix == ".png":
        options["interlace"] = choices.draw(st.booleans())
        if channels in (1, 3) and choices.draw(st.booleans()):
            options["bitdepth"] = choices.draw(st.sampled_from([1, 2, 4]))
            options["palette"] = channels == 3
    else:
        options["compression"] = choices.draw(st.sampled_from(["none", "lzw", "deflate", "jpeg"]))
        options["tile"] = choices.draw(st.booleans())
        if channels == 1:
            options["miniswhite"] = choices.draw(st.booleans())
            if options["compression"] == "none":
                options["bitdepth"] = choices.draw(st.sampled_from([1, 2, 4, 8]))
    content = bytes(image.write_to_buffer(suffix, **options))
    return Picture(content, suffix, reference_pixels(content), f"{channels} {suffix} {options}")


def _known(choices: Choices) -> Picture:
    """A format that libvips does not know: what was written is what must be read."""
    form = choices.draw(st.sampled_from(["BMP", "DIB", "TGA", "PPM", "QOI", "JPEG2000", "ICO"]))
    mode = choices.draw(st.sampled_from(["L", "RGB"]))
    mode = "RGB" if form == "QOI" else mode
    array = values(choices, _CHANNELS[mode])
    image = in_mode(array, mode)
    if form == "ICO":
        image = image.convert("RGB")
    options: dict[str, Any] = {"sizes": [image.size]} if form == "ICO" else {}
    content = encoded(image, form, **options)
    pixels = np.asarray(image.convert("RGB"))
    suffix = ".pgm" if form == "PPM" and mode == "L" else _SUFFIXES.get(form, f".{form.lower()}")
    return Picture(content, suffix, pixels, f"{form} {mode}")


def _without_white(choices: Choices) -> Picture:
    """Numbers of a measurement, which do not say which one is white."""
    dtype = choices.draw(st.sampled_from([np.float32, np.int32, np.uint32, np.float64, np.int16]))
    array = values(choices, choices.draw(st.sampled_from([1, 3])))
    content = bytes(pyvips.Image.new_from_array(array.astype(dtype)).write_to_buffer(".tif"))
    return Picture(content, ".tif", None, f"TIFF of {np.dtype(dtype).name}")


def _plain_bitmap(choices: Choices) -> Picture:
    """A bitmap written here, from its top or from its bottom, in 16, 24 or 32 bits a pixel."""
    array = values(choices, 3)
    bits = choices.draw(st.sampled_from([24, 32]))
    from_top = choices.draw(st.booleans())
    height, width, _ = array.shape
    rows = array[..., ::-1] if from_top else array[::-1, :, ::-1]
    if bits == 32:
        rows = np.concatenate([rows, np.zeros((height, width, 1), np.uint8)], axis=-1)
    padding = bytes(-(width * bits // 8) % 4)
    body = b"".join(row.tobytes() + padding for row in rows)
    header = struct.pack(
        "<IiiHHIIiiII",
        40,
        width,
        -height if from_top else height,
        1,
        bits,
        0,
        len(body),
        0,
        0,
        0,
        0,
    )
    content = b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + header + body
    return Picture(content, ".bmp", array, f"BMP of {bits} bits, from_top={from_top}")


_WRITERS = (
    *(_by_pillow, _by_pillow, _by_pillow, _photo, _photo),
    *(_deep, _shallow, _known, _plain_bitmap, _without_white),
)


def draw_picture(choices: Choices) -> Picture:
    """A small picture of any kind."""
    write: Callable[[Choices], Picture] = choices.draw(st.sampled_from(_WRITERS))
    return write(choices)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A grey picture of noise, the same in every run."""
    values = np.random.default_rng(seed).normal(128, 80, (height, width)).clip(0, 255)
    return Image.fromarray(values.astype(np.uint8))
