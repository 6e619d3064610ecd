"""Whatever people have an image in: URLs, open files, arrays, tensors, odd metadata, one object for many threads."""

from __future__ import annotations

import base64
import io
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import pytest
import torch
from flashjanus.errors import InputError
from flashjanus.inputs.images import ImageProcessor, load_image
from PIL import Image, features
from sample_image import LEVELS, PNG, encoded

BASE64 = base64.b64encode(PNG).decode()


def same(image: Image.Image) -> bool:
    return image.mode == "RGB" and np.array_equal(np.asarray(image), LEVELS)


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            f"data:image/png;base64,{BASE64}",
            f"DATA:image/png;charset=utf-8;BASE64,{BASE64}",
            f"data:;base64 ,{BASE64}",
            f" data:image/png;base64,{BASE64}\n",
            "data:image/png;base64,\n" + "\r\n ".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
            f"data:image/png;base64,{base64.urlsafe_b64encode(PNG).decode()}",
            f"data:image/png;base64,{BASE64.rstrip('=')}",
            f"data:image/png;base64,{quote(BASE64, safe='')}",
            f"data:image/png,{quote(PNG)}",
        ],
    )
    def test_data(self, url):
        assert "+" in BASE64
        assert "/" in BASE64
        assert same(load_image(url))

    @pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "FILE://{}", "file:{}"])
    def test_files(self, tmp_path, form):
        path = tmp_path / "a b#ü.png"
        path.write_bytes(PNG)
        assert same(load_image(form.format(quote(str(path)))))

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("file://elsewhere/a.png", "not fetched from the network"),
            ("file:a.png", "an absolute path"),
            ("file:///nowhere/a.png", "cannot read the image '/nowhere/a.png': No such file"),
            ("HTTPS://example.com/a.png", "not fetched from the network; download HTTPS://example.com/a.png"),
            ("s3://bucket/a.png", "not fetched from the network"),
            ("data:image/png;base64,A", "does not hold base64"),
            ("data:image/png;base64,AA*A", "does not hold base64"),
            ("data:image/png;base64,", "it is empty"),
            ("data:image/png,\ud800", "the data: URL is not text"),
        ],
    )
    def test_what_is_refused(self, url, words):
        with pytest.raises(InputError) as error:
            load_image(url)
        assert words in str(error.value)


class TestOpenFiles:
    def test_from_the_start_and_left_where_they_were(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        with open(tmp_path / "a.png", "rb") as file, tempfile.NamedTemporaryFile() as other:
            other.write(PNG)
            for source in (io.BytesIO(PNG), file, other):
                source.seek(7)
                assert same(load_image(source))
                assert source.tell() == 7
            assert same(load_image(io.BufferedReader(io.BytesIO(PNG))))

    def test_what_cannot_seek_is_read_to_its_end(self):
        class Response:
            def __init__(self) -> None:
                self.chunks = [PNG]

            def read(self, size: int = -1) -> bytes:
                return self.chunks.pop() if self.chunks else b""

        assert same(load_image(Response()))

    def test_what_is_refused(self, tmp_path):
        (tmp_path / "a.png").write_bytes(PNG)
        closed = open(tmp_path / "a.png", "rb")  # noqa: SIM115
        closed.close()
        with open(tmp_path / "a.png", "wb") as unreadable, open(__file__) as text:
            for source in (closed, unreadable):
                with pytest.raises(InputError, match=r"cannot read the image in the open file .*a\.png"):
                    load_image(source)
            for source in (text, io.StringIO("a")):
                with pytest.raises(InputError, match="expected a file opened in binary mode, 'rb', got str"):
                    load_image(source)


class TestArrays:
    @pytest.mark.parametrize(
        "source",
        [
            LEVELS,
            LEVELS[:, ::-1][:, ::-1],
            LEVELS.transpose(2, 0, 1),
            LEVELS / 255,
            (LEVELS / 255).astype(np.float16),
            LEVELS.astype(np.uint16) * 257,
            (LEVELS.astype(np.uint16) * 257).astype(">u2"),
            LEVELS.astype(">f8") / 255,
            np.dstack([LEVELS, np.full((30, 40), 255, np.uint8)]),
            torch.from_numpy(LEVELS).permute(2, 0, 1),
            torch.from_numpy(LEVELS),
            torch.from_numpy(LEVELS).permute(2, 0, 1) / 255,
            (torch.from_numpy(LEVELS).permute(2, 0, 1) / 255).double().requires_grad_(),
            torch.from_numpy(LEVELS / 255 + 1e-4 * (LEVELS == 255)),
        ],
        ids=lambda source: f"{type(source).__module__} {source.dtype} {tuple(source.shape)}",
    )
    def test_what_shows_the_image(self, source):
        assert same(load_image(source))

    def test_half_precision_is_near(self):
        image = load_image((torch.from_numpy(LEVELS).permute(2, 0, 1) / 255).bfloat16())
        assert np.abs(np.asarray(image).astype(int) - LEVELS).max() <= 1

    @pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (1, 30, 40)])
    @pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
    def test_gray(self, shape, make):
        gray = LEVELS[:, :, 0]
        for values in (gray, gray / 255):
            image = load_image(make(values.reshape(shape)))
            assert np.array_equal(np.asarray(image), np.dstack([gray] * 3))
        bits = load_image(make((gray > 99).reshape(shape)))
        assert np.array_equal(np.asarray(bits), np.dstack([(gray > 99) * 255] * 3))

    def test_alpha_is_laid_on_white(self):
        values = np.zeros((1, 2, 4), np.float32)
        values[0, 1] = [1, 0, 0, 1]
        for source in (values, torch.from_numpy(values).permute(2, 0, 1).repeat(1, 5, 3)):
            image = load_image(source)
            assert [image.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (255, 0, 0)]
        assert load_image(np.array([[[0, 0], [9, 255]]] * 5, np.uint8)).getpixel((1, 0)) == (9, 9, 9)

    def test_the_own_order_of_axes_comes_first(self):
        assert load_image(np.zeros((3, 5, 3), np.uint8)).size == (5, 3)
        assert load_image(torch.zeros((3, 5, 3), dtype=torch.uint8)).size == (3, 5)

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            (np.zeros((1, 3, 8, 8), np.uint8), "pass its images one by one"),
            (torch.zeros(2, 3, 8, 8), "pass its images one by one"),
            (np.zeros((8, 8, 5), np.uint8), "1 to 4 channels, got uint8 (8, 8, 5)"),
            (torch.zeros(8), "1 to 4 channels, got float32 (8,)"),
            (torch.zeros(3, 0, 8), "empty"),
            (torch.zeros(3, 8, 8, dtype=torch.int64), "convert it to uint8"),
            (np.zeros((8, 8, 3), object), "convert it to uint8"),
            (np.full((8, 8, 3), 255.0), "expected floats from 0 to 1, got float64 (8, 8, 3) from 255 to 255"),
            (torch.full((3, 8, 8), -1.0), "from -1 to -1"),
            (torch.full((3, 8, 8), torch.nan), "from nan to nan"),
            (np.full((8, 8), np.inf), "from inf to inf"),
        ],
    )
    def test_what_is_refused(self, source, words):
        with pytest.raises(InputError) as error:
            load_image(source)
        assert words in str(error.value)

    def test_what_is_given_stays(self):
        values = torch.rand(3, 8, 8)
        before = values.clone()
        load_image(values).putpixel((0, 0), (0, 0, 0))
        assert torch.equal(values, before)
        own = LEVELS.copy()
        load_image(own).putpixel((0, 0), (0, 0, 0))
        assert np.array_equal(own, LEVELS)


@pytest.mark.parametrize(("kind", "feature"), [("AVIF", "avif"), ("JPEG2000", "jpg_2000")])
def test_newer_formats_where_pillow_reads_them(kind, feature):
    if not features.check(feature):
        pytest.skip(f"this Pillow has no {feature}")
    lossless = {"quality": 100} if kind == "AVIF" else {"irreversible": False}
    shown = np.asarray(load_image(encoded(kind, Image.new("RGB", (32, 16), (200, 30, 90)), **lossless)))
    assert np.abs(shown.astype(int) - (200, 30, 90)).max() <= 3
    with pytest.raises(InputError, match=r"damaged|not an image|cannot be opened"):
        load_image(encoded(kind)[:200])


def test_a_pillow_without_a_format_still_reads_the_others(monkeypatch):
    from flashjanus.inputs import decoding

    monkeypatch.setattr(decoding, "FORMATS", ("PNG", "NEWER"))
    decoding.formats.cache_clear()
    try:
        assert decoding.formats() == ("PNG",)
        assert same(load_image(PNG))
        with pytest.raises(InputError, match="not an image; expected one of PNG"):
            load_image(encoded("JPEG"))
    finally:
        decoding.formats.cache_clear()


class TestThreads:
    """PIL decodes an image in place, and a file has one position: as many as ask at once must each get the whole."""

    LARGE = encoded("PNG", Image.fromarray(np.random.default_rng(1).integers(0, 256, (600, 600, 3), np.uint8)))
    EXPECTED = np.asarray(Image.open(io.BytesIO(LARGE)))

    def all_of(self, tmp_path, make, read) -> list[bool]:
        (tmp_path / "a.png").write_bytes(self.LARGE)
        found = []
        with ThreadPoolExecutor(4) as pool:
            for _ in range(10):
                source = make(tmp_path / "a.png")
                found += list(pool.map(lambda _, source=source: read(source), range(4)))
        return found

    @pytest.mark.parametrize(
        "make",
        [Image.open, lambda path: Image.open(io.BytesIO(path.read_bytes())), lambda path: open(path, "rb")],  # noqa: SIM115
        ids=["image of a file", "image of bytes", "file"],
    )
    def test_one_source_for_all(self, tmp_path, make):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            found = self.all_of(tmp_path, make, lambda source: np.array_equal(load_image(source), self.EXPECTED))
        assert found == [True] * 40

    def test_a_file_that_is_slow_to_move(self):
        """Another thread would read at its end, before this one has put it back."""

        class Slow:
            at = 0

            def seekable(self) -> bool:
                return True

            def tell(self) -> int:
                return self.at

            def seek(self, at: int) -> None:
                time.sleep(0.002)
                self.at = at

            def read(self, size: int = -1) -> bytes:
                time.sleep(0.002)
                data, self.at = PNG[self.at :], len(PNG)
                return data

        file = Slow()
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: same(load_image(file)), range(12)))

    def test_the_processor_of_one_image(self, tmp_path):
        processor = ImageProcessor(32)
        expected = processor.preprocess(load_image(self.LARGE))
        found = self.all_of(tmp_path, Image.open, lambda source: torch.equal(processor.preprocess(source), expected))
        assert found == [True] * 40
