"""Peers: the official code's script as a process, and transformers on our weights where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.errors import InputError, PeerError
from flashjanus.measure.bench import peers
from flashjanus.measure.bench.models import configs
from flashjanus.measure.bench.peers import Official, Transformers
from flashjanus.measure.bench.stages import TOKENS, Stages, cases

SCRIPT = """
import json, os, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
open("calls", "a").write(" ".join(sys.argv[1:]) + " " + os.environ["OMP_NUM_THREADS"] + "\\n")
names = {"step": ["step"], "generate": ["generate"], "understand": ["encode", "prefill_620", "decode_token"]}
print("noise")
print(json.dumps({n: {"median_s": i + 1.0} for i, n in enumerate(names[given["--what"]])}))
"""
SIZES = {"rows": [1, 2], "prompt_tokens": [40], "steps": [4], "chat_tokens": [620]}


def official(folder: Path, script: str = SCRIPT, compiled: bool = False) -> Official:
    (folder / "janus").mkdir()
    (folder / "script.py").write_text(script)
    return Official(folder / "script.py", folder, Path(sys.executable), "thin", "bfloat16", "cpu", compiled)


def test_one_process_for_all_that_understands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = cases(["load", "step", "latents", "SigLIP", "prefill", "token", "VAE"], {**SIZES, "rows": [2]})
    found = {case.stage: samples for case, samples in official(tmp_path, compiled=True).round(wanted, 3)}
    assert found == {"step": [1.0], "latents": [1.0], "SigLIP": [1.0], "prefill": [2.0], "token": [3.0]}
    calls = (tmp_path / "calls").read_text().splitlines()
    shared = f"--repo {tmp_path} --what WHAT --size thin --dtype bfloat16 --device cpu --batch 2 --repeats 3 "
    assert calls == [
        shared.replace("WHAT", what) + f"{given} --compile {torch.get_num_threads()}"
        for what, given in (
            ("step", "--prompt-tokens 40"),
            ("generate", "--prompt-tokens 40 --steps 4"),
            ("understand", f"--new-tokens {3 * TOKENS}"),
        )
    ]


def test_another_conversation_than_the_script_s_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = cases(["token", "prefill"], {**SIZES, "rows": [1], "chat_tokens": [100]})
    assert list(official(tmp_path).round(wanted, 1)) == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("raise SystemExit('no torch here')", "exit code 1 .*no torch here"),
        ("print('done')", "expected JSON in the last line, got done"),
        ("", "exit code 0 .*; its stderr ends with: nothing"),
    ],
)
def test_a_failing_script(tmp_path: Path, script: str, words: str) -> None:
    with pytest.raises(PeerError, match=words):
        list(official(tmp_path, script).round(cases(["step"], SIZES), 1))


def test_what_the_official_code_needs(small: JanusFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path)
    script, repo, python = str(tmp_path / "script.py"), str(tmp_path), sys.executable
    with pytest.raises(InputError, match="--official-script none: expected an existing file"):
        Official.of(small, "none", repo, python, False)
    with pytest.raises(InputError, match="--official-repo none: expected a checkout of deepseek-ai/Janus"):
        Official.of(small, script, "none", python, False)
    with pytest.raises(InputError, match=r"--official-python .*: expected an existing file"):
        Official.of(small, script, repo, repo, False)
    with pytest.raises(InputError, match="got state_dict; use --random-weights"):
        Official.of(small, script, repo, python, False)
    monkeypatch.setattr(small, "config", JanusFlowConfig.from_dict(configs("thin")[0]))
    made = Official.of(small, script, repo, python, True)
    assert (made.name, made.size, made.dtype, made.device) == ("official-compiled", "thin", "float32", "cpu")


def test_transformers_is_no_dependency(small: JanusFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PeerError, match="pip install transformers"):
        Transformers(Stages(small))


def test_our_weights_under_official_names(small: JanusFlow) -> None:
    from small_model import small_config, small_state

    official_state = small_state(small_config())
    state = peers.language_state(small)
    assert set(state) == {
        name.removeprefix("language_model.") for name in official_state if name.startswith("language_model.")
    }
    for name, tensor in state.items():
        assert torch.equal(tensor, official_state[f"language_model.{name}"]), name
    packed = small.runner.weights["llm.0.qkv"]
    assert state["model.layers.0.self_attn.q_proj.weight"].data_ptr() == packed.data_ptr()


def test_weights_in_tiles_are_given_row_by_row() -> None:
    """Where the CPU has AMX, the first of the two keeps tiles."""
    made, plain = (
        JanusFlow.from_pretrained("shapes", dtype="bfloat16", implementations=choice)
        for choice in (None, {"linear": "torch"})
    )
    state = peers.language_state(made)
    for name, tensor in peers.language_state(plain).items():
        assert torch.equal(state[name], tensor), name


def test_transformers_generates_the_same_tokens(small: JanusFlow) -> None:
    pytest.importorskip("transformers")
    engine = Stages(small)
    peer = Transformers(engine)
    ids = torch.tensor([engine.ids(20)])
    theirs = peer.model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    ours = small.generate_ids(ids, max_new_tokens=6)
    assert torch.equal(theirs[:, 20:], ours)
    wanted = cases(["prefill", "token", "step"], {**SIZES, "rows": [1], "prompt_tokens": [6], "chat_tokens": [20]})
    found = {case.stage: samples for case, samples in peer.round(wanted, 1)}
    assert {stage: len(samples) for stage, samples in found.items()} == {"prefill": 1, "token": TOKENS}
