"""Images with odd metadata, damaged ones, and what is taken for an image: each loads or is called by its name."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from flashjanus.errors import InputError
from flashjanus.inputs.images import load_image
from PIL import Image, PngImagePlugin
from sample_image import LEVELS, PNG, encoded


def same(image: Image.Image) -> bool:
    return image.mode == "RGB" and np.array_equal(np.asarray(image), LEVELS)


def exif(*fields: tuple[int, int, int, bytes]) -> bytes:
    """APP1 of (tag, type, count, value)."""
    start = 8 + 2 + 12 * len(fields) + 4
    entries, data = b"", b""
    for tag, kind, count, value in fields:
        at = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", start + len(data))
        data += value if len(value) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, count) + at
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + entries + bytes(4) + data


TURNED = (0x0112, 3, 1, struct.pack("<H", 6))
RESOLUTION_AS_TEXT = (0x011A, 2, 9, b"72 inches")
HALVES = Image.new("RGB", (16, 8), "blue")
HALVES.paste("red", (0, 0, 8, 8))


def chunk(kind: bytes, data: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def with_chunk(data: bytes, added: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return data[:33] + added + data[33:]


@pytest.mark.filterwarnings("ignore")
class TestOddMetadata:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize(
        "others",
        [
            [],
            [RESOLUTION_AS_TEXT],
            [(0x8769, 4, 1, struct.pack("<I", 60000))],  # Exif's own folder, far outside of the file
            [(0x013B, 77, 4, b"none")],  # a type that there is not
            [(0x011A, 5, 1, struct.pack("<II", 1, 0))],  # 1 / 0
        ],
    )
    def test_turned_whatever_the_other_fields_hold(self, kind, others):
        out = load_image(encoded(kind, HALVES, exif=exif(TURNED, *others)))
        assert out.size == (8, 16)
        assert out.getpixel((4, 2))[0] > 200
        assert out.getpixel((4, 13))[2] > 200

    @pytest.mark.parametrize("value", [(2, 2, b"6\0"), (4, 1, struct.pack("<I", 6))])
    def test_an_orientation_of_another_type(self, value):
        assert load_image(encoded("JPEG", HALVES, exif=exif((0x0112, *value)))).size == (8, 16)

    @pytest.mark.parametrize(
        "value", [(2, 5, b"left\0"), (3, 1, b"\0\0"), (3, 1, b"\x09\0"), (1, 1, b"\x06"), (5, 1, bytes(8))]
    )
    def test_no_orientation_at_all(self, value):
        assert load_image(encoded("JPEG", HALVES, exif=exif((0x0112, *value)))).size == (16, 8)

    @pytest.mark.parametrize("data", [b"Exif\0\0", b"Exif\0\0XX*\0\x08\0\0\0\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"])
    def test_exif_that_is_none(self, data):
        assert load_image(encoded("JPEG", HALVES, exif=data)).size == (16, 8)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_every_orientation_as_pillow_turns_it(self, orientation):
        from PIL import ImageOps

        data = encoded("PNG", exif=exif((0x0112, 3, 1, struct.pack("<H", orientation))))
        assert np.array_equal(load_image(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data))))

    def test_transparency_is_turned_with_the_rest(self):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putpixel((1, 0), 1)
        out = load_image(encoded("PNG", image, transparency=0, exif=exif(TURNED)))
        assert [out.getpixel((0, y)) for y in range(2)] == [(255, 255, 255), (200, 100, 50)]

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_a_color_profile_that_is_none(self, kind):
        data = encoded(kind, HALVES, icc_profile=b"no profile" * 9)
        assert load_image(data).size == load_image(Image.open(io.BytesIO(data))).size == (16, 8)

    @pytest.mark.parametrize(
        "added",
        [
            chunk(b"tEXt", b"prompt\0a cat", wrong=1),
            chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2 * PngImagePlugin.MAX_TEXT_CHUNK))),
            chunk(b"iTXt", b"prompt\0\1\0\0\0broken"),
            chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2 * PngImagePlugin.MAX_TEXT_CHUNK))),
            chunk(b"iCCP", b"profile\0\0broken"),
            chunk(b"pHYs", b"\0"),
            chunk(b"gAMA", b""),
        ],
        ids=lambda added: added[4:8].decode(),
    )
    def test_comments_of_a_png_that_pillow_refuses(self, added):
        assert same(load_image(with_chunk(PNG, added)))
        turned = load_image(with_chunk(encoded("PNG", HALVES, exif=exif(TURNED)), added))
        assert turned.size == (8, 16)

    def test_transparency_beside_a_broken_comment(self):
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putpixel((1, 0), 1)
        out = load_image(with_chunk(encoded("PNG", image, transparency=0), chunk(b"tEXt", b"a\0b", wrong=1)))
        assert [out.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (200, 100, 50)]

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
    def test_what_is_cut_off_is_still_damaged(self, kind):
        data = encoded(kind, exif=exif(TURNED, RESOLUTION_AS_TEXT)) if kind != "TIFF" else encoded(kind)
        with pytest.raises(InputError, match="damaged"):
            load_image(data[: len(data) * 3 // 4])
        if kind == "PNG":
            with pytest.raises(InputError, match="damaged"):
                load_image(with_chunk(data, chunk(b"tEXt", b"a\0b", wrong=1))[: len(data) * 3 // 4])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, which Pillow does not read; convert it to JPEG"),
        (b"%PDF-1.7", "a PDF"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "XML, such as SVG"),
        (b"\n<!DOCTYPE html><html>", "a web page; download the image itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_is_taken_for_an_image_is_called_by_its_name(data, words):
    with pytest.raises(InputError) as error:
        load_image(data)
    assert words in str(error.value)
    assert "is not an image" in str(error.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "does not fit into memory"),
        (OSError(5, "Input/output error"), "cannot be read: Input/output error"),
        (OSError("decoder jpeg2k not available"), "this build of Pillow lacks"),
        (OSError("image file is truncated"), "is damaged and cannot be decoded: image file is truncated"),
    ],
)
def test_what_fails_while_decoding_is_not_always_the_image(monkeypatch, error, words):
    def fail(self) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    for source in (PNG, Image.open(io.BytesIO(PNG))):
        with pytest.raises(InputError) as raised:
            load_image(source)
        assert words in str(raised.value)


def test_an_image_whose_file_was_closed_before_it_was_read():
    with Image.open(io.BytesIO(PNG)) as image:
        pass
    with pytest.raises(InputError, match="opened lazily, and its file is closed"):
        load_image(image)
    with Image.open(io.BytesIO(PNG)) as image:
        image.load()
    assert same(load_image(image))
