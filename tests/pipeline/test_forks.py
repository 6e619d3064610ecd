"""A model in a forked child: what servers that load before they fork and pools of workers do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from untrained_model import write_untrained_model

SCRIPT = """
import ctypes, hashlib, json, multiprocessing, os, signal, sys, threading, time
from contextlib import contextmanager
import torch
from flashjanus import JanusFlow
from flashjanus.engine.runtime import openmp
from flashjanus.engine.runtime.isolation import EXACT_PRODUCTS
from flashjanus.execution import runner

torch.set_num_threads(2)
folder = sys.argv[1]
model = JanusFlow.from_pretrained(folder, device="cpu", dtype="bfloat16")

def work(number=0, model=model):
    images = model.generate_image("a red circle", num_inference_steps=1, seed=1, output_type="np").images
    answer = model.chat([{"role": "user", "content": "What is it?"}], max_new_tokens=2)
    return hashlib.sha256(images.tobytes()).hexdigest() + answer

def in_child(case, fork=os.fork):
    # What `case` returns in a forked child, or the signal that ended it: one that hangs is ended by an alarm.
    ours, theirs = os.pipe()
    child = fork()
    if child == 0:
        signal.alarm(60)
        os.write(theirs, json.dumps(case()).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours) as answer:
        found = answer.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(found) if status == 0 else f"signal {status}"

def in_thread(run):
    found = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    return found[0]

def refused():
    try:
        return work()
    except RuntimeError as error:
        torch.set_num_threads(1)
        return [type(error).__name__, str(error), work()]

@contextmanager
def held(lock):
    # by a thread that lets go only when a fork already waits for it
    taken = threading.Event()
    def hold():
        with lock:
            taken.set()
            time.sleep(0.2)
    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    yield
    thread.join()

def after_products():
    torch.set_float32_matmul_precision("medium")
    left = threading.Event()
    entered = threading.Event()
    def within():
        with EXACT_PRODUCTS:
            entered.set()
            left.wait()
    thread = threading.Thread(target=within)
    thread.start()
    entered.wait()
    found = torch.get_float32_matmul_precision(), in_child(torch.get_float32_matmul_precision)
    left.set()
    thread.join()
    torch.set_float32_matmul_precision("highest")
    return found

def children_that_work(found):
    found["loaded"] = in_child(work)
    found["right"] = work()
    found["ran"] = in_child(work)
    found["grandchild"] = in_child(lambda: [work(), in_child(work)])
    found["forked by a thread"] = in_thread(lambda: [work(), in_child(work)])
    for again in range(3):
        in_thread(work)  # which ends while the next line forks
        load = lambda: work(0, JanusFlow.from_pretrained(folder, dtype="bfloat16"))
        found[f"loaded in the child {again}"] = in_child(load)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found["pool"] = pool.map(work, range(3))
    for name, lock in (("sessions", runner._LOCK), ("products", EXACT_PRODUCTS._lock)):
        with held(lock):
            found[name] = in_child(work)

found, runtime = {}, openmp.runtime()
if runtime.end_team():
    children_that_work(found)
found["right"] = work()
found["precision"] = after_products()
found["without hooks"] = in_child(refused, ctypes.PyDLL(None).fork)
found["new thread"] = in_child(lambda: in_thread(work), ctypes.PyDLL(None).fork)
runtime.end_team = lambda: False  # as runtimes older than OpenMP 5.0 answer
found["old runtime"] = in_child(refused)
found["still right"] = work()
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks with GNU's OpenMP runtime")
def test_a_forked_child_gives_the_same_or_says_why_not(tmp_path: Path) -> None:
    write_untrained_model(tmp_path / "model", layers=2)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model")]
    passive = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # or threads that spin keep each other from their cores
    ran = subprocess.run(command, env=passive, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    right, refusals = found.pop("right"), [found.pop(name) for name in ("without hooks", "old runtime")]
    assert found.pop("precision") == ["highest", "medium"]
    assert {name: {*([it] if isinstance(it, str) else it)} for name, it in found.items()} == {
        name: {right} for name in found
    }
    for kind, words, after in refusals:
        assert kind == "DeviceError"
        assert all(word in words for word in ("2 threads", "torch.set_num_threads(1)", "'spawn'"))
        assert after == right
