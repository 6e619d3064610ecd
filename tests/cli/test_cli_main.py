"""The edges of the command: help, usage errors, exit codes, pipes."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import flashjanus
import pytest
from flashjanus.cli.console import Console
from flashjanus.errors import CheckpointError, OutputError

Spawn = Callable[..., "Popen[bytes]"]


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_no_torch(spawn: Spawn, option: str) -> None:
    program = (
        "import sys; from flashjanus.cli import main; code = main(sys.argv[1:]); "
        "print('heavy:', sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules))); sys.exit(code)"
    )
    process = spawn("-c", program, option, module=False)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.decode().splitlines()[-1] == "heavy: []"
    assert err == b""


def test_version(cli) -> None:
    assert cli("--version").out == f"flashjanus {flashjanus.__version__}\n"


def test_help_names_every_command_and_no_other(cli) -> None:
    out = cli("--help").out
    for command in ("generate", "ask", "inspect", "quantize", "plan", "bench", "serve", "profile", "doctor"):
        assert f"\n    {command} " in out
        assert cli(command, "--help").out.startswith(f"usage: flashjanus {command} ")
    assert "train" not in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "COMMAND"),
        (["draw"], "draw"),
        (["generate"], "PROMPT"),
        (["generate", "a", "--steps", "many"], "--steps"),
        (["generate", "a", "--steps", "2.5"], "--steps"),
        (["generate", "a", "--step", "3"], "--step"),
        (["ask", "image.png"], "QUESTION"),
        (["plan", "--program", "train"], "train"),
        (["inspect"], "PATH"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(cli, model, arguments: list[str], expected: str) -> None:
    result = cli(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("flashjanus: error: ")
    assert expected in result.err
    assert "--help" in result.err
    assert result.err.count("\n") == 1
    assert model.calls == []


def test_usage_error_in_json(cli) -> None:
    result = cli("generate", "--json", "--steps", "x", "a")
    assert result.code == 2
    assert result.json["error"]["type"] == "InputError"
    assert "--steps" in result.json["error"]["message"]


def test_json_after_a_double_dash_is_a_prompt(cli, model, tmp_path: Path) -> None:
    result = cli("generate", "--seed", "7", "--out", tmp_path, "--", "--json")
    assert result.out == f"{tmp_path / 'json-7.png'}\n"


def test_unexpected_errors_keep_their_traceback(cli, model) -> None:
    model.fail = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        cli("generate", "a")


def test_an_error_of_several_lines_is_one_line_on_stderr(cli, model) -> None:
    model.fail = CheckpointError("missing:\n  a\n  b")
    result = cli("generate", "a", "--json")
    assert result.err.splitlines()[-1].startswith("flashjanus: error: missing:")
    assert result.err.splitlines()[-1].endswith("b")
    assert result.json == {"error": {"type": "CheckpointError", "message": "missing:\n  a\n  b"}}


def test_undecodable_argument(spawn: Spawn) -> None:
    process = spawn("generate", b"a \xff\xfe cat", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"argument 2 is not valid text" in err
    assert b"Traceback" not in err
    assert b'"type": "InputError"' in out


def test_interrupt_in_process(cli, model) -> None:
    model.fail = KeyboardInterrupt()
    result = cli("generate", "a", "--json")
    assert result.code == 130
    assert result.json["error"]["type"] == "Interrupted"
    assert result.err.endswith("flashjanus: interrupted\n")


INTERRUPTED = """
import os, signal, time
import flashjanus
from flashjanus.cli import main

class Model:
    name, device, dtype, numerics, why = "m", "cpu", "float32", "exact", ""
    quantization = None

    @classmethod
    def from_pretrained(cls, name, **options):
        return cls()

    def stream_images(self, prompt, callback_on_step_end, **options):
        INTERRUPT
        callback_on_step_end(self, 0, 0.0, {})
        raise AssertionError("the interrupt was lost")
        yield

flashjanus.JanusFlow = Model
raise SystemExit(main())
"""
SWALLOWED = """
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""
THROUGH_EXEC = """
        exec("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
"""


@pytest.mark.parametrize("interrupt", [SWALLOWED, THROUGH_EXEC])
def test_an_interrupt_is_never_lost(spawn: Spawn, tmp_path: Path, interrupt: str) -> None:
    # as a module, as in `python -m flashjanus`: only then does CPython look for a signal to die of
    (tmp_path / "interrupted.py").write_text(INTERRUPTED.replace("INTERRUPT", interrupt))
    process = spawn("-m", "interrupted", "generate", "a", "--out", tmp_path, module=False, cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"flashjanus: interrupted\n")


def test_an_interrupt_waits_for_what_must_not_be_cut_but_a_second_does_not() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    done: list[str] = []

    def interrupted(word: str) -> None:
        with console.uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(word)

    try:
        console = Console(json=False, quiet=False)
        console.listen_for_interrupt()
        with pytest.raises(KeyboardInterrupt):
            interrupted("whole")
        assert done == ["whole"]
        with pytest.raises(KeyboardInterrupt):
            interrupted("more")
        assert done == ["whole"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Console(json=False, quiet=False).listen_for_interrupt()
        assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_reader_that_leaves_is_no_error(spawn: Spawn) -> None:
    read, write = os.pipe()
    os.close(read)
    process = spawn("inspect", "/nowhere", "--json", "--quiet", stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert b"BrokenPipe" not in err
    assert b"Traceback" not in err
    assert process.returncode == 141


def test_closed_stdout_is_no_error(spawn: Spawn) -> None:
    arguments = "[sys.executable, '-m', 'flashjanus', 'inspect', '/nowhere', '--json']"
    process = spawn("-c", f"import os, sys; os.close(1); os.execv(sys.executable, {arguments})", module=False)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith(b"flashjanus: error: ")
    assert err.count(b"\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_behind_stdout(spawn: Spawn) -> None:
    with open("/dev/full", "wb") as full:
        process = spawn("inspect", "/nowhere", "--json", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"standard output cannot be written" in err
    assert b"Traceback" not in err


def test_text_that_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w", encoding="ascii") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        Console(json=False, quiet=False).text("caf\u00e9")
    assert (tmp_path / "out").read_text() == "caf\\xe9\n"


def test_stdout_errors_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        encoding = "utf-8"

        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(OutputError, match="No space left"):
        Console(json=False, quiet=False).text("a")


def test_status_and_progress_show_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    console = Console(json=False, quiet=False)
    console.status("loading")
    with console.progress(3, "drawing") as show:
        show(1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console.status("loading")
    with console.progress(3, "drawing") as show:
        show(1)
        show(3)
    err = capsys.readouterr().err
    assert "flashjanus: loading" in err
    assert "drawing" in err
    assert "3/3" in err
    quiet = Console(json=False, quiet=True)
    quiet.status("loading")
    quiet.note("by the way")
    with quiet.progress(3, "drawing") as show:
        show(3)
    assert capsys.readouterr().err == ""


def test_python_m_flashjanus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["flashjanus", "--version"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own handler
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module("flashjanus", run_name="__main__")
    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"flashjanus {flashjanus.__version__}\n"
