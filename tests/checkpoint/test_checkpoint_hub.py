"""Repositories of the hub: what is fetched, and every way in which that fails under its own name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from flashjanus.checkpoint import Checkpoint
from flashjanus.errors import CheckpointError

State = dict[str, torch.Tensor]


class FakeHub(ModuleType):
    """huggingface_hub whose repositories are local folders; notes what was asked for."""

    def __init__(self, repositories: dict[str, Path]):
        super().__init__("huggingface_hub")
        self.repositories = repositories
        self.calls: list[tuple[str, str | None, list[str]]] = []

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.calls.append((repo_id, revision, allow_patterns))
        if repo_id not in self.repositories:
            raise FileNotFoundError(f"Cannot find {repo_id} in the cache and outgoing traffic is disabled.\nmore")
        return str(self.repositories[repo_id])


def test_hub_id(folder: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub({"someone/tiny": folder})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = Checkpoint.open("someone/tiny", revision="v1")
    assert set(found.weights.names()) == set(state)
    assert found.vae is None
    assert {(repo, revision) for repo, revision, _ in hub.calls} == {("someone/tiny", "v1")}
    patterns = [pattern for _, _, patterns in hub.calls for pattern in patterns]
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(patterns)
    assert not any(pattern.endswith(".bin") for pattern in patterns)


def test_hub_repository_of_torch_files(folder: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    hub = FakeHub({"someone/tiny": folder})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert set(Checkpoint.open("someone/tiny").weights.names()) == set(state)
    assert "pytorch_model.bin" in hub.calls[-1][2]


def test_the_published_model_finds_its_vae_when_asked(
    folder_with_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = tmp_path / "sdxl"
    (folder_with_vae / "vae").rename(vae)
    hub = FakeHub({"deepseek-ai/JanusFlow-1.3B": folder_with_vae, "stabilityai/sdxl-vae": vae})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = Checkpoint.open("deepseek-ai/JanusFlow-1.3B", revision="main")
    assert not any(repo == "stabilityai/sdxl-vae" for repo, _, _ in hub.calls)
    assert found.vae is not None
    assert found.vae.config.scaling_factor == 0.5
    assert ("stabilityai/sdxl-vae", None) in {(repo, revision) for repo, revision, _ in hub.calls}
    assert Checkpoint.open(folder_with_vae).vae is None


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub({}))
    with pytest.raises(CheckpointError, match=r"hub repository someone/absent at revision v2: .* could not") as caught:
        Checkpoint.open("someone/absent", revision="v2")
    assert "local folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def real_hub(monkeypatch: pytest.MonkeyPatch, cache: Path | str, *, offline: bool = True) -> ModuleType:
    """The installed huggingface_hub with another cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return constants


def refused(name: str = "someone/absent", revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(name, revision=revision)
    message = str(caught.value)
    assert message.startswith(f"hub repository {name}")
    assert message.endswith("pass a local folder")
    assert "\n" not in message
    return message


def test_the_real_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_hub(monkeypatch, tmp_path)
    assert f"not in the local cache at {tmp_path}, and HF_HUB_OFFLINE is set" in refused()


def test_a_snapshot_in_the_cache_needs_no_network(
    folder: Path, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_hub(monkeypatch, tmp_path / "cache")
    repository, commit = tmp_path / "cache" / "models--someone--tiny", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    found = Checkpoint.open("someone/tiny")
    assert set(found.weights.names()) == set(state)
    assert found.folder == repository / "snapshots" / commit
    assert "HF_HUB_OFFLINE" in refused("someone/tiny", "another")
    with pytest.raises(CheckpointError, match="give one of the folders in its snapshots, or the hub id"):
        Checkpoint.open(repository)


def test_a_home_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """As huggingface_hub reads it: without HOME and an entry for the user, "~" stands for itself."""
    real_hub(monkeypatch, os.path.join("~", ".cache", "huggingface", "hub"))
    message = refused()
    assert "HOME is not set and this user has no home; set HF_HOME to a folder" in message


NO_HOME = """
import os, pwd, sys
os.environ.pop("HOME", None)
def nobody(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = nobody
from flashjanus.cli import main
sys.exit(main())
"""


def test_a_user_without_a_home(tmp_path: Path) -> None:
    """The environment is read when huggingface_hub is imported, so this takes a process of its own."""
    pytest.importorskip("huggingface_hub")
    homes = ("HF_", "XDG_CACHE_HOME", "HUGGINGFACE_", "TRANSFORMERS_")
    bare = {name: value for name, value in os.environ.items() if not name.startswith(homes)}
    command = [sys.executable, "-c", NO_HOME, "inspect", "someone/absent"]
    for environment, words in (({}, "set HF_HOME to a folder"), ({"HF_HOME": str(tmp_path)}, f"cache at {tmp_path}")):
        run = subprocess.run(
            command,
            env={**bare, **environment, "HF_HUB_OFFLINE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 2
        assert run.stderr.startswith("flashjanus: error: hub repository someone/absent: ")
        assert words in run.stderr
        assert run.stderr.count("\n") == 1
    assert not (tmp_path / "~").exists()


def test_a_cache_that_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = real_hub(monkeypatch, tmp_path / "file" / "hub", offline=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "file" / "token"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert f"the hub's cache at {tmp_path / 'file' / 'hub'} cannot be used (Not a directory: " in refused()


class Failing(ModuleType):
    """huggingface_hub whose downloads fail."""

    def __init__(self, error: Exception):
        super().__init__("huggingface_hub")
        self.error = error

    def snapshot_download(self, repo_id: str, **options: object) -> str:
        raise self.error


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EACCES, "Permission denied"), (errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")],
)
def test_a_cache_that_cannot_be_written(code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(code, os.strerror(code), "/somewhere/hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", Failing(error))
    message = refused()
    assert "cannot be used" in message
    assert f"{words}" in message
    assert "set HF_HOME to a folder that this user may write to" in message
    assert "network" not in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RepositoryNotFoundError", "no such repository, or it is private; check the name and HF_TOKEN"),
        ("GatedRepoError", "conditions must be accepted on the hub first; accept them there and set HF_TOKEN"),
        ("RevisionNotFoundError", "no such revision"),
        ("LocalEntryNotFoundError", "check the name, the network"),
    ],
)
def test_each_refusal_has_its_own_words(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real_hub(monkeypatch, "/cache", offline=False)
    errors = pytest.importorskip("huggingface_hub.errors")
    kind = getattr(errors, name)
    error = kind.__new__(kind)  # some want a response of the HTTP client
    error.args = ("401 Client Error.\nmore",)
    monkeypatch.setitem(sys.modules, "huggingface_hub", Failing(error))
    assert words in refused()


def test_a_part_of_a_repository_in_the_cache_is_named_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_hub(monkeypatch, tmp_path)
    errors = pytest.importorskip("huggingface_hub.errors")
    if not hasattr(errors, "IncompleteSnapshotError"):
        pytest.skip("this huggingface_hub does not tell")
    error = errors.IncompleteSnapshotError("1 file(s) are missing (model.safetensors).", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", Failing(error))
    assert "1 file(s) are missing (model.safetensors)" in refused()


def test_no_network_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection, a proxy that is none: the HTTP client's own errors are the hub's."""
    constants = real_hub(monkeypatch, tmp_path, offline=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "could not be fetched" in refused()
    errors = pytest.importorskip("huggingface_hub.errors")
    client = next(
        kind for kind in errors.HfHubHTTPError.__mro__ if kind.__module__.partition(".")[0] != "huggingface_hub"
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", Failing(type("ProxyError", (client,), {})("403 Forbidden")))
    assert "could not be fetched (ProxyError: 403 Forbidden)" in refused()
    error = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    monkeypatch.setitem(sys.modules, "huggingface_hub", Failing(error))
    assert "Connection refused); check the name, the network" in refused()


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub, or pass a local folder"):
        Checkpoint.open("someone/tiny")
