"""The trained baselines in two processes equal those in one, and a stopped run goes on to the same weights."""

import shutil
from pathlib import Path

import pytest
import torch
from process_pair import ProcessPair
from test_two_processes import check_close, run

KINDS = ("ppo", pytest.param("ppo_episodes", marks=pytest.mark.slow), "dpo", "trajectory_dpo", "ilql")


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind: str, pair: ProcessPair, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Three items in each batch, unequal shares of them and of micro-batches; a stopped run goes on to the bit."""

    def train(strategy: str, devices: int, steps: int, *more: str) -> list[dict[str, torch.Tensor]]:
        folder = tmp_path / strategy
        folder.mkdir(exist_ok=True)
        arguments = [kind, str(tiny_model_folder), str(folder), str(devices), str(steps), strategy, *more]
        run(pair, "baselines_in_processes", devices, arguments)
        return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]

    (one,) = train("auto", 1, 4)
    assert any(weight.abs().max() > 1e-3 for name, weight in one.items() if "lora_B" in name)  # it did train
    first, second = train("ddp", 2, 4)
    check_close(first, one)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    shutil.rmtree(tmp_path / "ddp" / "checkpoints")
    train("ddp", 2, 2)
    resumed = train("ddp", 2, 4, str(tmp_path / "ddp" / "checkpoints" / "last.ckpt"))[0]
    assert all(torch.equal(weight, resumed[name]) for name, weight in first.items())
    if kind == "ilql":  # heads besides sharded weights
        check_close(train("fsdp", 2, 4)[0], one)
