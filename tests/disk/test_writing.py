"""Files that are whole or not there, under names that nothing else has."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from flashjanus.api.png import save_new_png, save_png
from flashjanus.disk.writing import check_writable, new_folder, whole, write_new_file, write_text
from flashjanus.errors import InputError, OutputError
from PIL import Image


def test_png_with_metadata(tmp_path):
    path = tmp_path / "a.png"
    metadata = {"prompt": "un café rouge\n图 😀", "seed": "7", "model": "shapes", "latin": "é"}
    save_png(torch.zeros(3, 4, 5), path, metadata)
    image = Image.open(path)
    assert image.size == (5, 4)
    assert image.text == metadata
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    save_png(Image.new("RGB", (2, 2)), str(path))
    assert Image.open(path).size == (2, 2)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("metadata", [{"": "x"}, {"k" * 80: "x"}, {"图": "x"}, {"k": "a\0b"}, {"k": "\ud800"}])
def test_metadata_that_png_cannot_hold(tmp_path, metadata):
    with pytest.raises(InputError, match="PNG text"):
        save_png(Image.new("RGB", (2, 2)), tmp_path / "a.png", metadata)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["absent/a.png", "file/a.png", "folder", "a\0.png", "x" * 300 + ".png", "."])
def test_a_path_that_cannot_be_written(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        save_png(Image.new("RGB", (2, 2)), f"{tmp_path}/{name}")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_device_is_not_replaced():
    with pytest.raises(OutputError, match="regular file"):
        save_png(Image.new("RGB", (2, 2)), "/dev/null")
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(self, file, **options):
        file.write(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        save_png(Image.new("RGB", (2, 2)), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_text_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"
    write_text(str(path), "n\u00e9w")
    assert path.read_text(encoding="utf-8") == "n\u00e9w"


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "lost").symlink_to(tmp_path / "none" / "a.json")
    for path in ("", str(tmp_path), str(tmp_path / "none" / "a.json"), str(tmp_path / "lost"), "/dev/null", "a\0b"):
        with pytest.raises(OutputError, match="cannot write"):
            check_writable(path)
        with pytest.raises(OutputError, match="cannot write"):
            write_text(path, "x")
    check_writable(str(tmp_path / "a.json"))
    assert os.listdir(tmp_path) == ["lost"]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path, there):
    (tmp_path / "runs").mkdir()
    target, link = tmp_path / "runs" / "1.json", tmp_path / "latest.json"
    if there:
        target.write_text("old")
    link.symlink_to("runs/1.json")
    check_writable(str(link))
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path / "runs") == ["1.json"]


def hard_links(monkeypatch, exist: bool) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not exist:
        monkeypatch.setattr("os.link", refused)


@pytest.mark.parametrize("links", [True, False])
class TestNewNames:
    def test_a_taken_name_is_passed_over(self, tmp_path, monkeypatch, links):
        hard_links(monkeypatch, links)
        (tmp_path / "a.png").write_text("mine")
        (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
        (tmp_path / "c.png").mkdir()
        names = [tmp_path / f"{letter}.png" for letter in "abcd"]
        assert save_new_png(Image.new("RGB", (3, 2)), names) == names[3]
        assert Image.open(names[3]).size == (3, 2)
        assert (tmp_path / "a.png").read_text() == "mine"
        assert (tmp_path / "b.png").is_symlink()
        assert not (tmp_path / "nowhere").exists()
        assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png", "c.png", "d.png"]
        with pytest.raises(OutputError, match="File exists"):
            save_new_png(Image.new("RGB", (3, 2)), names)
        assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png", "c.png", "d.png"]

    def test_of_many_that_want_one_name_each_gets_its_own(self, tmp_path, monkeypatch, links):
        hard_links(monkeypatch, links)
        count, got = 8, []
        ready = threading.Barrier(count)
        names = [tmp_path / f"{n}" for n in range(count)]

        def claim(mine: bytes) -> None:
            got.append((write_new_file(iter(names), lambda file: (file.write(mine), ready.wait())), mine))

        threads = [threading.Thread(target=claim, args=(b"%d" % n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(path for path, _ in got) == names
        assert all(path.read_bytes() == mine for path, mine in got)
        assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in names)

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
    def test_a_write_that_fails_leaves_no_name(self, tmp_path, monkeypatch, links, error):
        hard_links(monkeypatch, links)

        def fail(file) -> None:
            file.write(b"half")
            raise error

        with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
            write_new_file([tmp_path / "a"], fail)
        assert os.listdir(tmp_path) == []


def test_a_claim_that_is_not_kept_is_given_up(tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    hard_links(monkeypatch, False)
    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_new_file([tmp_path / "a"], lambda file: file.write(b"whole"))
    assert os.listdir(tmp_path) == []


def test_what_the_system_refuses_otherwise_is_said(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.link", refused)
    with pytest.raises(OutputError, match="Input/output error"):
        write_new_file([tmp_path / "a"], lambda file: file.write(b"whole"))
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_block_keeps_its_type_and_leaves_nothing(tmp_path):
    for write in (whole, new_folder):
        with pytest.raises(InputError, match="bad weights"), write(tmp_path / "a"):
            raise InputError("bad weights")
    assert os.listdir(tmp_path) == []
