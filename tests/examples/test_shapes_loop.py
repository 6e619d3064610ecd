"""The resumable loop on a model of two numbers a row."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import TrainingError, load_finished
from loop import Draw, Losses, run_stage
from recipe import Stage
from torch import Tensor, nn

STAGE = Stage("small", 9, steps=12, lr=0.05, warmup=2, save_every=0.0)


class Killed(Exception):
    """Stands for the end of the process at that line."""


def model() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(4, 2)


def losses_of(module: nn.Linear, stop_at: int | None = None, bad: float | None = None) -> Losses:
    """A regression; at step `stop_at` it is killed, or its loss is `bad`."""

    def losses(step: int, draw: Draw) -> dict[str, Tensor]:
        if step == stop_at and bad is None:
            raise Killed
        x = torch.randn(8, 4, generator=draw.torch) + torch.from_numpy(draw.numpy.normal(size=(8, 4))).float()
        error = (module(x) - x[:, :2]).square().mean()
        return {"error": error * bad if step == stop_at and bad is not None else error, "_size": x.abs().mean()}

    return losses


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def uninterrupted(folder: Path) -> Tensor:
    module = model()
    run_stage(STAGE, module, losses_of(module), folder, seed=1)
    return weights(module)


def killed_at(step: int, folder: Path) -> None:
    module = model()
    with pytest.raises(Killed):
        run_stage(STAGE, module, losses_of(module, stop_at=step), folder, seed=1)


def test_the_loss_falls_and_the_average_is_left(tmp_path: Path) -> None:
    module = model()
    x = torch.eye(4)
    before = (module(x) - x[:, :2]).square().mean()
    run_stage(STAGE, module, losses_of(module), tmp_path, seed=1)
    assert (module(x) - x[:, :2]).square().mean() < before
    content = torch.load(tmp_path / "small-00000012.pt", weights_only=True)
    assert torch.equal(weights(module), torch.cat([value.flatten() for value in content["average"]]))
    assert not torch.equal(content["average"][0], content["parameters"][0])


@pytest.mark.parametrize("step", [0, 1, 7, 11])
def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(step: int, tmp_path: Path) -> None:
    killed_at(step, tmp_path / "killed")
    assert torch.equal(uninterrupted(tmp_path / "killed"), uninterrupted(tmp_path / "whole"))


def test_every_step_stage_and_seed_draws_its_own_numbers() -> None:
    def drawn(seed: int, number: int, step: int) -> tuple[float, float]:
        draw = Draw.of(seed, replace(STAGE, number=number), step)
        return draw.numpy.random(), float(torch.rand((), generator=draw.torch))

    cases = [(seed, number, step) for seed in range(3) for number in range(1, 4) for step in range(3)]
    found = [drawn(*case) for case in cases]
    assert found == [drawn(*case) for case in cases]
    assert all(len(set(numbers)) == len(cases) for numbers in zip(*found, strict=True))


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    killed_at(7, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.pt*")) == ["small-00000006.pt", "small-00000007.pt"]


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage: str, tmp_path: Path) -> None:
    killed_at(7, tmp_path)
    newest = tmp_path / "small-00000007.pt"
    content = newest.read_bytes()
    newest.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"\x93" * 500}[damage])
    steps = []
    module = model()
    inner = losses_of(module)

    def losses(step: int, draw: Draw) -> dict[str, Tensor]:
        steps.append(step)
        return inner(step, draw)

    run_stage(STAGE, module, losses, tmp_path, seed=1)
    assert steps == [6, 7, 8, 9, 10, 11]
    assert torch.equal(weights(module), uninterrupted(tmp_path / "whole"))
    assert (tmp_path / "small-00000007.damaged").is_file()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoints(bad: float, tmp_path: Path) -> None:
    module = model()
    with pytest.raises(TrainingError, match=r"small: .* not finite at step 5"):
        run_stage(STAGE, module, losses_of(module, stop_at=5, bad=bad), tmp_path, seed=1)
    assert weights(module).isfinite().all()
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["small-00000004.pt", "small-00000005.pt"]
    assert torch.equal(uninterrupted(tmp_path), uninterrupted(tmp_path / "whole"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    killed_at(3, tmp_path)
    wider = nn.Linear(5, 2)
    with pytest.raises(TrainingError, match="other sizes"):
        run_stage(STAGE, wider, losses_of(wider), tmp_path, seed=1)


def test_a_finished_stage_is_read_and_an_unfinished_one_refused(tmp_path: Path) -> None:
    expected = uninterrupted(tmp_path)
    module = model()
    load_finished(tmp_path, "small", list(module.parameters()), STAGE.steps)
    assert torch.equal(weights(module), expected)
    with pytest.raises(TrainingError, match=r"small-00000013\.pt is missing"):
        load_finished(tmp_path, "small", list(module.parameters()), 13)


def test_the_log_holds_means_and_what_was_watched(tmp_path: Path) -> None:
    module = model()
    inside: list[Tensor] = []

    def watch(step: int) -> dict[str, float]:
        inside.append(weights(module))
        return {"score": step / 100}

    run_stage(STAGE, module, losses_of(module), tmp_path, 1, watch, watch_every=6)
    records = [json.loads(line) for line in (tmp_path / "small.jsonl").read_text().splitlines()]
    assert [(record["step"], record["score"]) for record in records] == [(6, 0.06), (12, 0.12)]
    assert records[1]["error"] < records[0]["error"]
    assert torch.equal(inside[1], weights(module)), "a watch point measures the average"


TWO = """
import sys
sys.path.insert(0, {shapes!r})
import torch
from checkpoints import save_atomically
from loop import run_stage
from pathlib import Path
from ranks import average_gradients, rank, share
from recipe import Stage
from torch import distributed, nn

def work(number, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{{folder}}/meeting", rank=number, world_size=2)
    torch.manual_seed(number)
    module = nn.Linear(4, 2)

    def losses(step, draw):
        x = torch.randn(share(16), 4, generator=draw.torch)
        return {{"error": (module(x) - x[:, :2]).square().mean()}}

    run_stage(Stage("small", 9, steps=5, lr=0.05, warmup=2), module, losses, Path(folder), seed=1)
    module.weight.grad, module.bias.grad = torch.full_like(module.weight, 1.0 + number), None
    average_gradients(list(module.parameters()))
    content = {{**module.state_dict(), "gradient": module.weight.grad}}
    save_atomically(content, Path(folder) / f"process-{{rank()}}.pth")

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), 2)
"""


def test_two_processes_train_one_model_on_the_mean_of_their_gradients(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO.format(shapes=str(Path(sys.modules["loop"].__file__ or "").parent)))
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=300)
    first, second = (torch.load(tmp_path / f"process-{k}.pth", weights_only=True) for k in range(2))
    torch.manual_seed(0)
    alone = nn.Linear(4, 2)

    def losses(step: int, draw: Draw) -> dict[str, Tensor]:
        base = (1 * 97 + 9) * 1_000_003 + step
        batches = [torch.randn(8, 4, generator=torch.Generator().manual_seed(base * 64 + k)) for k in range(2)]
        return {"error": torch.stack([(alone(x) - x[:, :2]).square().mean() for x in batches]).mean()}

    run_stage(Stage("small", 9, steps=5, lr=0.05, warmup=2), alone, losses, tmp_path / "alone", seed=1)
    assert first["gradient"].unique().tolist() == second["gradient"].unique().tolist() == [1.5]
    for name, expected in alone.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6)
