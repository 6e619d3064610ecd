from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from flashjanus.errors import CheckpointError, ConfigError, InputError
from flashjanus.inputs.images import ImageProcessor, load_image, to_pil
from PIL import Image
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"
PREPROCESSING = load_file(GOLDEN / "preprocess.safetensors")
PROCESSOR = ImageProcessor.from_file(GOLDEN / "preprocessor_config.json")


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str = "RGB", size=(40, 30)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def pixel(image: Image.Image, x=0, y=0):
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("index", range(5))
def test_preprocessing_equals_the_official_processor(index):
    expected = PREPROCESSING[f"img{index}.pixel_values_u8"]
    pixels = PROCESSOR.preprocess(load_image(PREPROCESSING[f"img{index}.png"].numpy().tobytes()))
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 384, 384)
    torch.testing.assert_close(pixels, (expected.float() / 255 - 0.5) / 0.5, rtol=0, atol=2e-7)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (2, 3), (500, 400)])
def test_any_shape_becomes_a_square(size):
    pixels = PROCESSOR.preprocess(load_image(encoded(noise(size=size))))
    assert pixels.shape == (3, 384, 384)
    assert bool(pixels.isfinite().all())
    if 10_000 in size:  # a strip of 14 pixels in the middle of the mean color
        strip = ((pixels - (127 / 255 - 0.5) / 0.5).abs() > 1e-6).any(0)
        assert strip.any(1).sum() * strip.any(0).sum() == 14 * 384


@pytest.mark.parametrize(
    ("size", "scaled", "at"),
    [  # by hand: the short side is 384 short / long, cut off; of an odd number of free pixels the one more comes after
        ((640, 425), (384, 255), (0, 64)),  # 255.0
        ((640, 426), (384, 255), (0, 64)),  # 255.6
        ((426, 640), (255, 384), (64, 0)),
        ((500, 333), (384, 255), (0, 64)),  # 255.744
        ((333, 500), (255, 384), (64, 0)),
        ((1280, 853), (384, 255), (0, 64)),  # 255.9
        ((7, 5), (384, 274), (0, 55)),  # 274.29
        ((500, 19), (384, 14), (0, 185)),  # 14.59
        ((400, 15), (384, 14), (0, 185)),  # 14.4
        ((400, 14), (384, 14), (0, 185)),  # 13.44, less than the least
        ((384, 383), (384, 383), (0, 0)),
    ],
)
def test_the_long_side_fills_the_square_and_the_short_one_lies_in_its_middle(size, scaled, at):
    image = noise(size=size)
    due = np.full((384, 384, 3), 127, dtype=np.uint8)
    due[at[1] : at[1] + scaled[1], at[0] : at[0] + scaled[0]] = image.resize(scaled, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(PROCESSOR.resize(image)), due)


def test_scaling_is_bicubic():
    """Of Keys' kernel with a = -0.5, whose weights a quarter off a pixel are -9, 111, 29 and -3 of 128."""
    image = Image.fromarray(np.array([[20] * 4 + [220] * 4] * 8, dtype=np.uint8)).convert("RGB")
    row = np.asarray(ImageProcessor.from_file(None, image_size=16).resize(image))[8, :, 0].tolist()
    rise = [round(20 + 200 * share / 128) for share in (-3, -9, 29 - 3)]
    assert row == [20] * 5 + rise + [240 - level for level in reversed(rise)] + [220] * 5


def test_the_released_settings_without_a_file():
    """As `from_state_dict` has them."""
    p = ImageProcessor.from_file(None, image_size=32)
    assert p == ImageProcessor(32, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))


def test_code_defaults_where_a_file_is_silent(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    p = ImageProcessor.from_file(tmp_path / "preprocessor_config.json", image_size=32)
    assert (p.image_size, p.min_size, p.do_normalize) == (32, 14, True)
    white = p.preprocess(Image.new("RGB", (8, 8), (255, 255, 255)))[:, 0, 0]
    expected = [(1 - m) / s for m, s in zip(p.image_mean, p.image_std, strict=True)]
    assert pixel(p.resize(Image.new("RGB", (8, 1)))) == (122, 116, 104), "255 times the mean, cut off"
    torch.testing.assert_close(white, torch.tensor(expected, dtype=torch.float32))
    assert p.image_mean == (0.48145466, 0.4578275, 0.40821073)


def test_normalization_can_be_off(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"image_size": 20, "do_normalize": false}')
    pixels = ImageProcessor.from_file(path).preprocess(Image.new("RGB", (5, 5), (51, 102, 255)))
    torch.testing.assert_close(pixels[:, 3, 3], torch.tensor([0.2, 0.4, 1.0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "image_size"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": 10**9}, "image_size"),
        ({"image_size": "384"}, "image_size"),
        ({"image_size": 96, "min_size": 100}, "min_size"),
        ({"image_size": 96, "min_size": -1}, "min_size"),
        ({"image_size": 96, "image_mean": [0.5, 0.5]}, "three numbers"),
        ({"image_size": 96, "image_mean": None}, "three numbers"),
        ({"image_size": 96, "image_std": [0.5, float("nan"), 1]}, "three numbers"),
        ({"image_size": 96, "image_std": [0.5, 0, 1]}, "image_std"),
        ({"image_size": 96, "rescale_factor": "x"}, "rescale_factor"),
        ({"image_size": 96, "do_normalize": 1}, "do_normalize"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, settings, message):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=message):
        ImageProcessor.from_file(path)


def test_a_size_that_is_not_the_encoders_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"384.*96"):
        ImageProcessor.from_file(GOLDEN / "preprocessor_config.json", image_size=96)
    with pytest.raises(CheckpointError, match="absent"):
        ImageProcessor.from_file(tmp_path / "absent.json")


def test_preprocess_wants_rgb():
    with pytest.raises(InputError, match="RGBA"):
        PROCESSOR.preprocess(Image.new("RGBA", (5, 5)))


def test_every_kind_of_source_gives_the_same_image(tmp_path):
    image = noise()
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    url = "data:image/png;base64," + base64.b64encode(encoded(image)).decode()
    for source in (str(path), path, encoded(image), bytearray(encoded(image)), image, np.array(image), url):
        assert load_image(source).tobytes() == image.tobytes()


@pytest.mark.parametrize(("kind", "size"), [("PNG", 60), ("JPEG", 300), ("GIF", 40), ("WEBP", 60), ("BMP", 60)])
def test_truncated_files_are_refused(kind, size, tmp_path):
    data = encoded(noise(), kind)[:size]
    with pytest.raises(InputError, match=r"damaged|cannot be opened|not an image"):
        load_image(data)
    path = tmp_path / "cut"
    path.write_bytes(data)
    with pytest.raises(InputError, match="cut"):
        load_image(path)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a"])
def test_what_is_not_an_image_is_refused(data):
    with pytest.raises(InputError, match=r"not an image|cannot be opened|damaged"):
        load_image(data)


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (20_000, 9_000)])
def test_a_decompression_bomb_is_refused_before_decoding(size, monkeypatch):
    with pytest.raises(InputError, match=r"exceeds limit|too large"):
        load_image(png_claiming(*size))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(InputError, match=r"too large: .* scale it down"):
        load_image(png_claiming(*size))


def test_cmyk():
    assert pixel(load_image(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"))) == (255, 0, 0)
    red, green, blue = pixel(load_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")))
    assert red > 250
    assert green < 5
    assert blue < 5


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_16_bit_grey_is_scaled_to_8_bits(kind, dtype):
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=dtype)
    image = load_image(encoded(Image.fromarray(levels), kind))
    assert [pixel(image, x)[0] for x in range(6)] == [0, 0, 1, 1, 128, 255]


def test_16_bit_grey_as_older_pillow_reads_it():
    image = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    with pytest.raises(InputError, match="32-bit"):
        load_image(image)
    image.format = "PNG"
    assert pixel(load_image(image), 1) == (255, 255, 255)


def test_float_pixels_are_refused():
    with pytest.raises(InputError, match="32-bit"):
        load_image(Image.new("F", (4, 4)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new({"La": "LA", "RGBa": "RGBA"}.get(mode, mode), (2, 1))  # transparent black
    image.putpixel((1, 0), (0, 0, 0, 255) if "RGB" in mode else (0, 255))
    out = load_image(image.convert(mode))
    assert [pixel(out, 0), pixel(out, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_half_transparent_red_on_white():
    assert pixel(load_image(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))) == (255, 127, 127)


def test_palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    out = load_image(encoded(image, transparency=0))
    assert [pixel(out, 0), pixel(out, 1)] == [(255, 255, 255), (200, 100, 50)]
    out = load_image(encoded(image, transparency=b"\x80\xff"))
    assert [pixel(out, 0), pixel(out, 1)] == [(132, 137, 142), (200, 100, 50)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_modes_become_rgb(mode):
    image = noise("RGB") if mode == "LAB" else noise(mode)
    image = Image.new("LAB", (4, 4)) if mode == "LAB" else image
    assert load_image(image).mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (6, 6), color) for color in ("red", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert pixel(load_image(data)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(kind):
    image = Image.new("RGB", (16, 8), "blue")
    image.paste("red", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    out = load_image(encoded(image, kind, exif=exif))
    assert out.size == (8, 16)
    assert pixel(out, 4, 2)[0] > 200
    assert pixel(out, 4, 13)[2] > 200


def test_the_given_image_is_left_as_it_is():
    image = Image.new("RGBA", (4, 4), (1, 2, 3, 0))
    load_image(image)
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (1, 2, 3, 0)


@pytest.mark.parametrize(
    "source",
    [
        None,
        5,
        ["a.png"],
        np.zeros((4, 4, 3), np.int64),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((5, 4, 5), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_other_sources_are_refused(source):
    with pytest.raises(InputError, match="expected"):
        load_image(source)


def test_an_empty_image_is_refused():
    with pytest.raises(InputError, match="empty: 0 x 5"):
        load_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.png", "No such file"),
        ("https://example.com/a.png", "network"),
        ("data:image/png,xx", "base64"),
        ("data:image/png;base64,???", "base64"),
        ("data:image/png;base64,AAAA", "not an image"),
        ("a\0b.png", "cannot read"),
        ("/", "regular file"),
        ("/dev/zero", "regular file"),
        ("x" * 5000, "cannot read"),
    ],
)
def test_unreadable_sources_are_named(source, message):
    with pytest.raises(InputError, match=message):
        load_image(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular file"):
        load_image(tmp_path / "pipe")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_damaged_bytes_give_an_image_or_a_typed_error(kind):
    exif = Image.Exif()
    exif[0x0112] = 3
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    data = encoded(noise(size=(12, 9)), kind, **options)
    rng = random.Random(kind)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            broken[rng.randrange(min(len(broken), 200))] = rng.randrange(256)
        with contextlib.suppress(InputError):
            assert load_image(bytes(broken)).mode == "RGB"


def test_to_pil_truncates_as_the_official_unpack():
    values = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 0.9999, 1.0, 7.0])
    image = to_pil(values.expand(3, 1, 8))
    assert [pixel(image, x)[0] for x in range(8)] == [0, 0, 0, 127, 191, 254, 255, 255]
    # the official code: np.zeros(uint8)[:] = np.clip((dec + 1) / 2 * 255, 0, 255)
    dec = torch.randn(3, 16, 17, generator=torch.Generator().manual_seed(0))
    expected = np.clip((dec.numpy().transpose(1, 2, 0) + 1) / 2 * 255, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(to_pil(dec)), expected)
    np.testing.assert_array_equal(np.asarray(to_pil(dec.bfloat16())), np.asarray(to_pil(dec.bfloat16().float())))


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(1, 3, 4, 4),
        torch.zeros(4, 4, 3),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.zeros(3, 0, 4),
        torch.full((3, 2, 2), float("nan")),
        torch.full((3, 2, 2), float("inf")),
    ],
)
def test_to_pil_refuses_other_tensors(image):
    with pytest.raises(InputError):
        to_pil(image)
