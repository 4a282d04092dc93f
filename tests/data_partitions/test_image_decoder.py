import io
import os

import numpy as np
import pytest
from PIL import Image

from persephonee.data_partitions import image_decoder
from persephonee.data_partitions.image_decoder import open_image, to_pixels
from persephonee.data_partitions.sources.image_cells import decode

GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes, channels: int = 1) -> np.ndarray:
    return to_pixels(open_image(content), channels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright_whatever_its_camera_marked(orientation):
    # how a viewer turns an image of each mark, TIFF 6.0 Section "Orientation"
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a),
    }
    exif = Image.Exif()
    exif[274] = orientation
    assert np.array_equal(pixels(encoded(Image.fromarray(GREY), exif=exif))[0], upright[orientation](GREY))


def test_ink_on_a_transparent_ground_lies_on_white_paper():
    alpha = 255 - GREY
    drawing = np.dstack([np.zeros((4, 6, 3), dtype=np.uint8), alpha])
    # black of opacity a over white is 255 - a
    assert np.array_equal(pixels(encoded(Image.fromarray(drawing)))[0], 255 - alpha)
    assert np.array_equal(pixels(encoded(Image.fromarray(drawing)), channels=3)[2], 255 - alpha)
    grey = np.dstack([np.zeros((4, 6), dtype=np.uint8), alpha])
    assert np.array_equal(pixels(encoded(Image.fromarray(grey)))[0], 255 - alpha)


def test_a_colour_that_a_palette_or_a_chunk_calls_transparent_is_paper():
    cut_out = encoded(Image.fromarray(GREY), transparency=0)
    expected = GREY.copy()
    expected[GREY == 0] = 255
    assert np.array_equal(pixels(cut_out)[0], expected)
    palette = Image.fromarray((GREY > 100).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 40, 40, 40])
    assert set(np.unique(pixels(encoded(palette, transparency=0)))) == {40, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_range(kind):
    deep = GREY.astype(np.uint16) * 257
    assert np.array_equal(pixels(encoded(Image.fromarray(deep), kind))[0], GREY)


def test_floats_between_0_and_1_are_scaled_and_what_has_no_known_range_is_refused():
    floats = (GREY / 255).astype(np.float32)
    assert np.array_equal(pixels(encoded(Image.fromarray(floats), "TIFF"))[0], GREY)
    for array in (floats * 255, floats - 1, np.full((4, 6), np.nan, dtype=np.float32)):
        with pytest.raises(ValueError, match="not from 0 to 1"):
            pixels(encoded(Image.fromarray(array), "TIFF"))
    with pytest.raises(ValueError, match="32 bits a channel, whose range is not known"):
        pixels(encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_white_is_white_in_every_mode(mode):
    white = encoded(Image.new("RGB", (6, 4), "white").convert(mode), "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    for channels in (1, 3):
        array = pixels(white, channels)
        assert (array.shape, array.dtype, array.min()) == ((channels, 4, 6), np.uint8, 255)


def test_an_image_is_refused_for_its_size_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(image_decoder, "MAX_IMAGE_PIXELS", 23)
    with pytest.raises(ValueError, match="too large"):
        open_image(encoded(Image.fromarray(GREY)))
    with pytest.raises(ValueError, match="too large"):
        to_pixels(Image.fromarray(GREY), 1)
    monkeypatch.setattr(image_decoder, "MAX_IMAGE_BYTES", 20)
    with pytest.raises(ValueError, match="too large"):
        open_image(encoded(Image.fromarray(GREY)))
    monkeypatch.undo()
    # a head of 60,000 x 60,000 px and nothing behind it
    with pytest.raises(ValueError, match="too large"):
        open_image(b"P6 60000 60000 255 ")


def test_a_format_that_starts_another_program_is_no_image():
    with pytest.raises(ValueError, match="does not decode"):
        open_image(encoded(Image.new("RGB", (6, 4)), "EPS"))


def test_damaged_images_are_refused_and_never_raise_anything_else():
    generator = np.random.default_rng(0)
    wholes = [encoded(Image.fromarray(GREY), kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")]
    for turn in range(700):
        content = bytearray(wholes[turn % len(wholes)])
        for place in generator.integers(0, len(content), 3):
            content[place] = generator.integers(256)
        try:
            assert pixels(bytes(content)).dtype == np.uint8
        except ValueError:
            continue


def test_a_path_in_a_table_reads_below_its_folder_and_nowhere_else(tmp_path):
    inside = tmp_path / "table" / "images"
    inside.mkdir(parents=True)
    (inside / "a b.png").write_bytes(encoded(Image.fromarray(GREY)))
    (tmp_path / "secret.png").write_bytes(encoded(Image.fromarray(GREY)))
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(inside / "pipe.png")
    table = tmp_path / "table"
    good = ["images/a b.png", f"{inside}/a b.png", f"file://{inside}/a%20b.png"]
    for named in good:
        for cell in (named, {"bytes": None, "path": named}):
            assert np.array_equal(decode(cell, 1, table)[0], GREY)
    bad = {
        "../secret.png": "leads out of",
        str(tmp_path / "secret.png"): "leads out of",
        f"file://{tmp_path}/secret.png": "leads out of",
        "images/link.png": "leads out of",
        "images/pipe.png": "no regular file",
        "images": "no regular file|Is a directory",
        "https://example.org/a.png": "a https address; download",
        "missing.png": "is missing; give encoded bytes, or a path below",
        "x" * 5000: "cannot be read",
        "a\0b.png": "null character",
    }
    for named, reason in bad.items():
        with pytest.raises(ValueError, match=reason):
            decode(named, 1, table)
    for cell in (None, 7, {}, {"bytes": None, "path": None}, ""):
        with pytest.raises(ValueError, match="give encoded bytes, or a path below"):
            decode(cell, 1, table)


def test_a_camera_s_12_bits_in_a_file_for_16_are_refused_and_darkness_is_not():
    twelve_bits = Image.fromarray(GREY.astype(np.uint16) * 16)
    with pytest.raises(ValueError, match="no number above 3680, as 12 bits of a camera do"):
        pixels(encoded(twelve_bits, "TIFF"))
    assert not pixels(encoded(Image.fromarray(np.zeros((4, 6), dtype=np.uint16)), "TIFF")).any()


def test_lists_in_torch_s_order_are_the_same_image():
    colours = np.dstack([GREY, 255 - GREY, GREY // 2])
    assert np.array_equal(decode(colours.transpose(2, 0, 1).tolist(), 3, None), decode(colours.tolist(), 3, None))
    assert np.array_equal(decode(GREY[None].tolist(), 1, None), GREY[None])
