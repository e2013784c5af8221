"""Images are read as a person sees them, or refused in one sentence."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from bitfront.errors import InvalidSample
from objectives.data import images
from objectives.data.images import decode_image
from tests.support.pictures import profiles, reference_pixels


def sample(side: int = 12, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (side, side + 4, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **settings: object) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **settings)
    return stream.getvalue()


def pixels(content: bytes, background: str = "white") -> np.ndarray:
    image = decode_image(content, "x.png", background)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_an_image_stands_upright(orientation: int, form: str) -> None:
    upright = Image.fromarray(sample())
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    tag = Image.Exif()
    tag[0x0112] = undo.get(orientation, 1)
    stored = ImageOps.exif_transpose(Image.open(BytesIO(encoded(upright, exif=tag))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
    }

    read = pixels(encoded(stored, form, exif=exif, **lossless.get(form, {})))

    assert read.shape == sample().shape
    if form != "JPEG":
        assert (read == sample()).all()
    else:
        assert np.abs(read.astype(int) - sample()).mean() < 8


def test_a_damaged_orientation_counts_as_none() -> None:
    content = encoded(
        Image.fromarray(sample()), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff"
    )

    assert pixels(content).shape == sample().shape


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000"])
def test_grey_values_of_16_bits_are_scaled(form: str) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)

    read = pixels(encoded(Image.fromarray(values), form))

    assert (read == np.rint(values / 257).astype(np.uint8)[:, :, None]).all()


def test_the_deep_values_of_a_netpbm_file_are_scaled() -> None:
    values = np.linspace(0, 1000, 64).astype(">u2").reshape(8, 8)

    read = pixels(b"P5 8 8 1000\n" + values.tobytes())

    assert np.abs(read[..., 0].astype(int) - np.rint(values.astype(float) * 0.255)).max() <= 1


def test_12_bits_of_a_tiff_fill_the_range() -> None:
    # Two values of 12 bits in three bytes: 0xFFF and 0x000.
    packed = bytes([0xFF, 0xF0, 0x00])
    entries = [(256, 4, 2), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, 1), (279, 4, 3)]
    ifd = len(entries).to_bytes(2, "little")
    for tag, kind, value in entries:
        ifd += tag.to_bytes(2, "little") + kind.to_bytes(2, "little")
        ifd += (1).to_bytes(4, "little") + value.to_bytes(4, "little")
    header = b"II*\x00" + (12).to_bytes(4, "little") + packed + b"\x00"

    read = pixels(header + ifd + bytes(4))

    assert read[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("values", [np.float32, np.int32])
def test_values_without_a_white_are_refused(values: type[np.generic]) -> None:
    content = encoded(Image.fromarray(np.arange(16).reshape(4, 4).astype(values)), "TIFF")

    with pytest.raises(InvalidSample, match=r"x.png .* which one is white: convert it"):
        decode_image(content, "x.png")


@pytest.mark.parametrize(("background", "shown"), [("white", 255), ("#808080", 128), ("black", 0)])
def test_what_is_transparent_shows_the_background(background: str, shown: int) -> None:
    whole = np.concatenate([sample(), np.zeros((*sample().shape[:2], 1), np.uint8)], axis=-1)
    whole[0, 0, 3] = 255

    read = pixels(encoded(Image.fromarray(whole)), background)

    assert (read[0, 0] == sample()[0, 0]).all()
    assert (read[1:] == shown).all()


def modes() -> dict[str, Callable[[], bytes]]:
    grey = Image.fromarray(sample()[..., 0])
    transparent = Image.new("P", (4, 4), 1)
    transparent.putpalette([10, 20, 30, 40, 50, 60])
    deep = Image.fromarray(np.full((4, 4), 7, np.uint16))
    return {
        "LA": lambda: encoded(Image.new("LA", (4, 4), (9, 0))),
        "L": lambda: encoded(Image.new("L", (4, 4), 9), transparency=9),
        "P": lambda: encoded(transparent, transparency=1),
        "RGB": lambda: encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)),
        "I;16": lambda: encoded(deep, transparency=7),
        "1": lambda: encoded(grey.convert("1").point(lambda _: 1)),
    }


@pytest.mark.parametrize("mode", list(modes()))
def test_every_way_to_be_transparent_is_seen(mode: str) -> None:
    assert (pixels(modes()[mode]()) == 255).all()


def test_a_profile_is_brought_to_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image = Image.fromarray(sample())

    same = pixels(encoded(image, icc_profile=srgb.tobytes()))
    damaged = pixels(encoded(image, icc_profile=b"no profile at all"))
    foreign = pixels(encoded(image, icc_profile=lab.tobytes()))

    assert (same == sample()).all()
    assert (damaged == sample()).all()
    assert (foreign == sample()).all()


def test_a_wide_gamut_is_converted_as_littlecms_does() -> None:
    wide = wide_gamut()
    image = Image.fromarray(sample())
    source = ImageCms.ImageCmsProfile(BytesIO(wide))
    expected = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))

    read = pixels(encoded(image, icc_profile=wide))

    assert (read == np.asarray(expected)).all()
    assert np.abs(read.astype(int) - sample()).max() > 20


def wide_gamut() -> bytes:
    """sRGB's own profile with its red and blue primaries exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.find(b"rXYZ", 128), profile.find(b"bXYZ", 128)
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def test_print_colours_are_read() -> None:
    read = pixels(encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG"))

    assert (read > 250).all()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(form: str) -> None:
    first, second = Image.new("RGB", (6, 6), (255, 0, 0)), Image.new("RGB", (6, 6), (0, 0, 255))
    settings: dict[str, object] = {"save_all": True, "append_images": [second]}
    if form == "WEBP":
        settings["lossless"] = True

    assert (pixels(encoded(first, form, **settings)) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"x.png is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"%PDF-1.7 and more", "cannot be read: it is in none of the formats"),
        (b"II*\x00\x08\x00\x00\x00", "begins like a TIFF, but is damaged or of a kind that is not"),
        (encoded(Image.fromarray(sample(64)), "JPEG")[:-400], "cannot be read"),
        (encoded(Image.fromarray(sample(64)))[:-400], "cannot be read"),
    ],
)
def test_what_is_no_image_is_one_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(InvalidSample, match=sentence) as caught:
        decode_image(content, "x.png")

    assert "\n" not in str(caught.value)


def test_a_huge_image_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100)

    with pytest.raises(InvalidSample, match="has 16 x 12 pixels, more than"):
        decode_image(encoded(Image.fromarray(sample())), "x.png")


@pytest.mark.parametrize("short_by", [1, 10, 40, 100])
def test_a_tiff_without_all_of_its_tags_is_refused(short_by: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(sample())
    content = encoded(image, "TIFF", exif=exif, compression="tiff_lzw", icc_profile=wide_gamut())

    with pytest.raises(InvalidSample, match=r"the image x\.png cannot be read"):
        decode_image(content[:-short_by], "x.png")


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_profile_of_greys_counts_with_and_without_transparency(mode: str) -> None:
    greys = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    image = Image.fromarray(greys)
    if mode == "LA":
        image.putalpha(255)
    profile = profiles()["light"]

    read = pixels(encoded(image, icc_profile=profile))

    wanted = reference_pixels(encoded(Image.fromarray(greys), icc_profile=profile))
    assert np.abs(read.astype(int) - wanted).max() <= 1
    assert np.abs(read[..., 0].astype(int) - greys).max() > 20
