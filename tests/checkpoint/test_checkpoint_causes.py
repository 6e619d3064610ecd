"""Every cause under its own name: what cannot be read, what stands in a file's place, what is not all there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus.checkpoint import Checkpoint, describe
from flashjanus.errors import CheckpointError, ConfigError
from flashjanus.inputs.tokenizer import Tokenizer
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3852310\n"
INDEX = "model.safetensors.index.json"


def refused(folder: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """The one line with which opening and describing `folder` fail."""
    with pytest.raises(kind) as caught:
        Checkpoint.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def shards(folder: Path, state: State, count: int, *, index: bool = True, stem: str = "model") -> list[Path]:
    (folder / "model.safetensors").unlink()
    paths, weight_map = [], {}
    for i in range(count):
        part = dict(list(state.items())[i::count])
        suffix = "safetensors" if stem == "model" else "bin"
        paths.append(folder / f"{stem}-{i + 1:05d}-of-{count:05d}.{suffix}")
        save_file(part, paths[-1]) if suffix == "safetensors" else torch.save(part, paths[-1])
        weight_map |= dict.fromkeys(part, paths[-1].name)
    if index:
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return paths


# Root may read everything, so a child process gives its rights up, after all imports: their files are root's as well.
CHILD = """
import json, os, sys
import flashjanus.builtin, flashjanus.cli.app, flashjanus.checkpoint.quantize
from flashjanus.checkpoint import Checkpoint
from flashjanus.cli import main
from flashjanus.errors import FlashJanusError
from flashjanus.inputs.tokenizer import Tokenizer
Checkpoint.open(sys.argv[1])
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for command, folder in json.load(sys.stdin):
    if command == "open":
        try:
            Checkpoint.open(folder).config
            print("opened")
        except FlashJanusError as error:
            print(type(error).__name__, error)
    else:
        print("code", main([command, folder, *(["new"] if command == "quantize" else []), "--json"]), flush=True)
"""


@pytest.fixture
def shared(config_dict: dict[str, Any], state: State) -> Iterator[Callable[[str], Path]]:
    """Makes folders of checkpoints that other users can read (pytest's own they cannot)."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)

        def make(case: str) -> Path:
            folder = Path(name, case)
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config_dict))
            save_file(state, folder / "model.safetensors")
            return folder

        yield make
        for folder, _, _ in os.walk(name):
            os.chmod(folder, 0o755)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of POSIX")
def test_what_may_not_be_read_says_so(shared: Callable[[str], Path], state: State) -> None:
    def prepare(case: str) -> tuple[Path, Path]:
        """The folder of a case, and what may not be read in it."""
        folder = shared(case)
        if case == "torch":
            (folder / "model.safetensors").unlink()
            torch.save(state, folder / "pytorch_model.bin")
            return folder, folder / "pytorch_model.bin"
        if case == "shard":
            return folder, shards(folder, state, 2)[1]
        if case == "index":
            shards(folder, state, 2)
            return folder, folder / INDEX
        if case == "vae":
            (folder / "vae").mkdir()
            (folder / "vae" / "config.json").write_text("{}")
            return folder, folder / "vae"
        if case == "parent":
            folder.rename(folder.parent / "inner")
            folder.mkdir()
            (folder.parent / "inner").rename(folder / "inner")
            return folder / "inner", folder
        return folder, folder if case.startswith("folder") else folder / case

    cases = ["model.safetensors", "torch", "config.json", "shard", "index", "vae", "parent", "folder r", "folder x"]
    prepared = {case: prepare(case) for case in cases}
    for folder, _ in prepared.values():
        for path in folder.rglob("*.*"):
            os.chmod(path, 0o644)  # safetensors itself writes files that their owner alone may read
    for case, (_, path) in prepared.items():
        os.chmod(path, {"folder r": 0o444, "folder x": 0o111}.get(case, 0))
    text = shared("tokenizer.json")
    (text / "tokenizer.json").write_text("{}")
    os.chmod(text / "model.safetensors", 0o644)
    os.chmod(text / "tokenizer.json", 0)
    commands = [("open", str(folder)) for folder, _ in prepared.values()]
    commands += [("inspect", str(prepared["model.safetensors"][0])), ("quantize", str(text))]
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(shared("good"))],
        input=json.dumps(commands),
        cwd=text.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stderr.count("\n") == run.stderr.count("flashjanus: ") == 2, run.stderr
    lines = run.stdout.splitlines()
    for case, line in zip(cases, lines, strict=False):
        assert re.match(r"(Checkpoint|Config)Error ", line), (case, line)
        assert "cannot be read: Permission denied; give this user access" in line, (case, line)
        assert "No such file" not in line
        where = prepared[case][0 if case in ("parent", "folder r") else 1]
        assert str(where) in line, (case, line)
    described, code, failed, failure = lines[len(cases) :]
    assert "model.safetensors: cannot be read: Permission denied" in json.loads(described)["problems"][0]
    assert (code, failure) == ("code 2", "code 2")
    assert "tokenizer.json: cannot be read: Permission denied" in json.loads(failed)["error"]["message"]
    assert not (text.parent / "new").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "vae/config.json", INDEX])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "a Git LFS pointer in place of the file; run `git lfs pull`"),
        (b"/annex/objects/SHA256E-s3852310--4d7a.safetensors\n", "a git-annex pointer"),
        (b"<!DOCTYPE html>\n<html>Sign in</html>", "a web page in place of the file"),
        (b"", "an empty file"),
    ],
)
def test_what_stands_in_a_files_place(folder_with_vae: Path, name: str, content: bytes, words: str) -> None:
    if name == INDEX:
        (folder_with_vae / "model.safetensors").unlink()
    path = folder_with_vae / name
    path.write_bytes(content)
    if name == "tokenizer.json":
        with pytest.raises(ConfigError) as caught:
            Tokenizer.from_files(path)
        message = str(caught.value)
    else:
        message = refused(folder_with_vae)
    assert message.startswith(f"{path}: {words}")


@pytest.mark.parametrize("form", ["pytorch_model.bin", "vae/diffusion_pytorch_model.safetensors"])
def test_a_pointer_in_place_of_other_weights(folder_with_vae: Path, form: str) -> None:
    if form.endswith(".bin"):
        (folder_with_vae / "model.safetensors").unlink()
    (folder_with_vae / form).write_bytes(LFS)
    assert refused(folder_with_vae).startswith(f"{folder_with_vae / form}: a Git LFS pointer")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "vae"])
def test_a_link_that_leads_nowhere(folder: Path, name: str) -> None:
    """As in a hub's cache whose blobs were removed."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../../blobs/4d7a2146")
    message = refused(folder)
    assert message.startswith(f"{folder / name}: a link to ../../blobs/4d7a2146, which does not exist")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_folder_in_place_of_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert refused(folder) == f"{folder / name}: expected a file, got a folder"


def test_a_link_to_itself(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")
    assert "cannot be read: Too many levels of symbolic links" in refused(folder)


def test_a_file_cut_short_says_how_much_is_there(folder: Path) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert f"(cut short: {size - 1} of {size} bytes); fetch it again" in refused(folder)
    os.truncate(path, 100)
    assert "(cut short: 100 bytes, fewer than its header has)" in refused(folder)


def test_a_file_with_something_after_it_is_not_cut_short(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    message = refused(folder)
    assert "not a complete safetensors file (" in message
    assert "cut short" not in message


def test_a_torch_file_under_the_name_of_the_other_format(folder: Path, state: State) -> None:
    torch.save(state, folder / "model.safetensors")
    assert "torch.save wrote it: a .bin under another name" in refused(folder)


@pytest.mark.parametrize("stem", ["model", "pytorch_model"])
def test_shards_without_an_index(folder: Path, state: State, stem: str) -> None:
    paths = shards(folder, state, 3, index=False, stem=stem)
    assert set(Checkpoint.open(folder).weights.names()) == set(state)
    paths[1].unlink()
    assert refused(folder) == f"{folder}: 1 of 3 files are absent, fetch them: {paths[1].name}"


def test_an_interrupted_download_is_named(folder: Path, state: State, tmp_path: Path) -> None:
    path = shards(folder, state, 2)[1]
    path.unlink()
    part = folder / ".cache" / "huggingface" / "download" / "4d7a.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    assert refused(folder) == (
        f"{folder / INDEX}: 1 of 2 files are absent (an interrupted download left {part}), fetch them: {path.name}"
    )
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((folder / "config.json").read_bytes())
    blob = tmp_path / "models--a--b" / "blobs" / "4d7a.incomplete"
    blob.parent.mkdir()
    blob.write_bytes(b"half")
    assert refused(snapshot).endswith(f" (an interrupted download left {snapshot.parent.parent / 'blobs' / blob.name})")
    browser = tmp_path / "browser"
    browser.mkdir()
    (browser / "model.safetensors.crdownload").write_bytes(b"half")
    assert "config.json: no such file (an interrupted download left" in refused(browser, ConfigError)


def test_what_macos_leaves_is_passed_over(folder: Path, state: State) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "._weights.safetensors").write_bytes(b"\0\5\26\7")
    assert set(Checkpoint.open(folder).weights.names()) == set(state)


def test_a_config_with_a_byte_order_mark(folder: Path) -> None:
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Checkpoint.open(folder).config.latent_size == 8


def test_a_training_checkpoint_whose_config_is_above_it(folder: Path) -> None:
    inner = folder / "checkpoint-500"
    inner.mkdir()
    (folder / "model.safetensors").rename(inner / "model.safetensors")
    torch.save({"state": {}, "param_groups": []}, inner / "optimizer.pt")
    message = refused(inner, ConfigError)
    found = f"there is one in {folder}: copy it and the tokenizer's files beside the weights"
    assert message == f"{inner / 'config.json'}: no such file; {found}"
    assert message in describe(Checkpoint.locate(inner))["problems"]
    assert refused(folder).endswith("; give one of the folders in it: checkpoint-500")
    (folder / "config.json").rename(inner / "config.json")
    assert "no such file; there is one in checkpoint-500: give that folder" in refused(folder, ConfigError)


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ("adapter_config.json", "holds only a PEFT adapter: load its base model, and this folder by load_adapter"),
        ("model.gguf", "or pytorch_model.bin; got model.gguf"),
        ("zero_to_fp32.py", "run zero_to_fp32.py, which DeepSpeed left there"),
    ],
)
def test_a_folder_of_something_else(folder: Path, left: str, words: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / left).write_text("{}")
    if left == "adapter_config.json":
        (folder / "config.json").unlink()
    assert words in refused(folder)


def test_the_config_of_a_vae_is_not_taken_for_the_models(folder_with_vae: Path) -> None:
    (folder_with_vae / "config.json").unlink()
    assert refused(folder_with_vae, ConfigError) == f"{folder_with_vae / 'config.json'}: no such file"


def test_a_vae_that_is_not_there_is_no_hub_id(folder: Path) -> None:
    described = describe(Checkpoint.locate(folder, vae="/no/such/folder"))
    assert not any("fetched" in problem for problem in described["problems"])
    assert described["vae"] == {"source": "/no/such/folder", "is_local": True}
    assert "/no/such/folder: no such folder" in described["problems"][0]
