"""Evaluation and on-policy training in two processes equal those in one; a process that fails ends the other."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import GONE, FakeVllm, folders, serving
from process_pair import ProcessPair
from transformers import AutoModelForCausalLM

from lit_rft.episodes import read_episodes, write_episodes
from lit_rft.testing.tiny import make_episode, with_adapters


def run(pair: ProcessPair, module: str, devices: int, arguments: list[str]) -> None:
    """One process is this one."""
    if devices == 1:
        importlib.import_module(module).main(arguments)
    else:
        pair.run(module, arguments)


@pytest.mark.parametrize("kind", ["episodes", "prompts"])
def test_two_processes_play_and_answer_what_one_does(
    kind: str, pair: ProcessPair, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Unequal shares, with weights that are whole or split; adapters act."""
    adapter = tmp_path / "adapter"
    with_adapters(AutoModelForCausalLM.from_pretrained(tiny_model_folder)).save_pretrained(adapter)
    found = {}
    for strategy, devices in (("auto", 1), ("ddp", 2), ("fsdp", 2)):
        folder = tmp_path / strategy
        folder.mkdir()
        arguments = [kind, str(tiny_model_folder), str(adapter), str(folder), str(devices), strategy]
        run(pair, "play_in_processes", devices, arguments)
        if kind == "episodes":
            files = list((folder / "episodes").iterdir())
            episodes = read_episodes(folder / "episodes")
            said = sorted((e.id, [step.action for step in e.steps]) for e in episodes)
        else:
            files = sorted(folder.glob("completions*.jsonl"))
            rows = [json.loads(line) for file in files for line in file.read_text().splitlines()[1:]]
            said = sorted(json.dumps(row) for row in rows)
        assert len(files) == devices and len(said) == (3 if kind == "episodes" else 5 * 3)
        metrics = json.loads((folder / "metrics.json").read_text())
        found[strategy] = ({name: pytest.approx(value, abs=1e-6) for name, value in metrics.items()}, said)
    assert found["ddp"][1] == found["auto"][1] == found["fsdp"][1]
    whole = json.loads((tmp_path / "auto" / "metrics.json").read_text())
    assert whole and (kind != "episodes" or "test/metrics/room" in whole)
    assert found["ddp"][0] == whole == found["fsdp"][0]


@pytest.mark.slow  # 13 to 16 s
def test_two_processes_fine_tune_online(pair: ProcessPair, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Unequal shares (three episodes a round) equal one process; the buffer is everyone's, and is resumed."""
    write_episodes(tmp_path / "stored.jsonl", [make_episode(seed, 4) for seed in range(3)])

    def train(steps: int, *more: str, strategy: str = "ddp", devices: int = 2) -> list[dict[str, Any]]:
        arguments = [str(tiny_model_folder), str(tmp_path), str(devices), str(steps), strategy]
        run(pair, "online_in_processes", devices, [*arguments, *more])
        return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]

    (one,) = train(6, strategy="auto", devices=1)  # two rounds of three updates
    assert any(weight.abs().max() > 1e-3 for name, weight in one["weights"].items() if "lora_B" in name)  # it did train
    last = tmp_path / "checkpoints" / "last.ckpt"
    for strategy in ("fsdp", "ddp"):
        shutil.rmtree(tmp_path / "checkpoints")
        found = train(6, strategy=strategy)
        for each in found:
            assert each["replay"] == one["replay"]
        check_close(found[0]["weights"], one["weights"])
        checkpoint = torch.load(last, weights_only=True)
        assert checkpoint["parts"]["replay"] == found[0]["replay"] and len(checkpoint["parts"]["replay"]) == 5
    assert all(torch.equal(weight, found[1]["weights"][name]) for name, weight in found[0]["weights"].items())
    two = last.with_name("two.ckpt")
    shutil.copy(last, two)
    resumed = train(9, str(last))
    (alone,) = train(9, str(two), strategy="auto", devices=1)
    assert alone["replay"] == resumed[0]["replay"]
    check_close(resumed[0]["weights"], alone["weights"])
    shutil.rmtree(tmp_path / "checkpoints")
    for each, other in zip(resumed, train(9), strict=True):  # to the bit as without the stop
        assert each["replay"] == other["replay"]
        assert all(torch.equal(weight, other["weights"][name]) for name, weight in each["weights"].items())


class MixedPolicy:
    """Runs of mixed-policy GRPO in a folder for each strategy."""

    def __init__(self, pair: ProcessPair, kind: str, model: Path, folder: Path) -> None:
        self.pair, self.kind, self.model, self.folder = pair, kind, str(model), folder

    def run(self, strategy: str, devices: int, steps: int, *more: str) -> list[dict[str, torch.Tensor]]:
        """The weights of each process."""
        folder = self.folder / strategy
        folder.mkdir(exist_ok=True)
        arguments = [self.kind, self.model, str(folder), str(devices), str(steps), strategy, *more]
        run(self.pair, "mixed_policy_in_processes", devices, arguments)
        return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]

    def last(self, strategy: str) -> list[str]:
        return ["--ckpt_path", str(self.folder / strategy / "checkpoints" / "last.ckpt")]


def check_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("kind", ["prompts", pytest.param("episodes", marks=pytest.mark.slow)])
def test_mixed_policy_in_two_processes(kind: str, pair: ProcessPair, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Three groups a round: unequal shares of them and of micro-batches equal one process; a stopped run goes on."""
    runs = MixedPolicy(pair, kind, tiny_model_folder, tmp_path)
    (one,) = runs.run("auto", 1, 4)
    assert any(weight.abs().max() > 1e-3 for name, weight in one.items() if "lora_B" in name)  # it did train
    runs.run("ddp", 2, 2)
    first, second = runs.run("ddp", 2, 4, *runs.last("ddp"))
    check_close(first, one)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    runs.run("fsdp", 2, 2)
    check_close(runs.run("fsdp", 2, 4, *runs.last("fsdp"))[0], one)
    if kind == "prompts":  # a checkpoint of other adapters is refused
        with pytest.raises(RuntimeError, match="does not fit the model: the adapter has other settings"):
            runs.run("fsdp", 2, 6, *runs.last("fsdp"), "--targets", "q_proj")


@pytest.mark.parametrize("kind", ["prompts", "episodes"])
def test_ppo_in_two_processes(kind: str, pair: ProcessPair, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Unequal shares of three groups: the mini-batches of two processes are those of one."""
    results = {}
    for devices in (1, 2):
        arguments = [kind, str(tiny_model_folder), str(tmp_path), str(devices)]
        run(pair, "ppo_in_processes", devices, arguments)
        results[devices] = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]
    (one,) = results[1]
    assert any(weight.abs().max() > 1e-3 for name, weight in one.items() if "lora_B" in name)  # it did train
    check_close(results[2][0], one)
    assert all(torch.equal(weight, results[2][1][name]) for name, weight in results[2][0].items())


def test_sums_over_two_processes_keep_their_types(pair: ProcessPair, tmp_path: Path) -> None:
    pair.run("ppo_in_processes", ["sums", "", str(tmp_path), "2"])
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert {name: value.dtype for name, value in first.items()} == {
        "double": torch.float64, "single": torch.float32, "half": torch.bfloat16, "whole": torch.int64,
        "advantages": torch.float64,
    }  # fmt: skip
    assert all(torch.equal(value, second[name]) for name, value in first.items() if name != "advantages")
    assert first["double"].tolist() == [1e9 + 1.25, 3.0]
    assert first["single"].tolist() == [1e9, 3.0] and first["half"].tolist() == [1.25, 2.0]
    assert int(first["whole"]) == 2**41 + 1
    rewards = torch.arange(6, dtype=torch.float64)
    expected = (rewards - rewards.mean()) / rewards.std(unbiased=False)
    together = torch.stack([first["advantages"], second["advantages"]], 1).flatten()
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_the_other(rank: int, tiny_model_folder: Path, tmp_path: Path) -> None:
    """One does not wait for the other's rollouts until the process group's half hour is over."""
    script = str(Path(__file__).with_name("mixed_policy_in_processes.py"))
    command = [sys.executable, script, "prompts", str(tiny_model_folder), str(tmp_path), "2", "2", "ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["--fails", str(rank)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert result.returncode != 0 and "no reward today" in result.stdout + result.stderr


def restarts_once(fake: FakeVllm) -> Any:
    """A fault: the server dies at the second completion with an adapter, and comes back without adapters."""
    left = [3]  # one checks log-probabilities

    def fault(path: str, content: dict[str, Any]) -> int | None:
        if content.get("model") not in fake.adapters:
            return None
        left[0] -= 1
        if left[0] == 0:
            fake.adapters.clear()
        return GONE if left[0] == 0 else None

    return fault


@pytest.mark.parametrize("kind", ["prompts", "episodes"])
def test_two_processes_sample_by_one_server(
    kind: str, pair: ProcessPair, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """One adapter a rollout, whether weights are split or not; who asks, and a server's restart, change no sample."""
    fake = FakeVllm(AutoModelForCausalLM.from_pretrained(tiny_model_folder))
    runs = MixedPolicy(pair, kind, tiny_model_folder, tmp_path)
    with serving(fake) as url:
        (one,) = runs.run("auto", 1, 2, "--url", url)
        fake.fault = restarts_once(fake)
        check_close(runs.run("fsdp" if kind == "prompts" else "ddp", 2, 2, "--url", url)[0], one)
    assert any(weight.abs().max() > 1e-3 for name, weight in one.items() if "lora_B" in name)
    assert len(set(folders(fake))) == 2 * 1 < len(folders(fake)) and not fake.adapters  # one rollout of two steps
    if kind == "prompts":  # without a server all processes end, and say why
        with pytest.raises(RuntimeError, match=r"(?s)(is `vllm serve` running there.*){2}"):
            runs.run("ddp", 2, 2, "--url", "http://127.0.0.1:9")
