"""Whole runs of `lit-rft` in processes of their own: two processes equal one, kill -9 and resume equals none."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import FakeVllm, folders, serving
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rft.episodes import read_episodes, write_episodes
from lit_rft.testing.tiny import make_episode, with_adapters


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("episodes") / "train.jsonl"
    write_episodes(path, [make_episode(seed, 1 + seed % 4) for seed in range(9)])
    return path


SFT = "glider/scienceworld/sft.yaml"


def _command(model: Path, episodes: Path, folder: Path, *more: str, config: str = SFT) -> list[str]:
    settings = {
        "trainer.default_root_dir": folder,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.max_epochs": 3,
        "trainer.limit_val_batches": 0,
        "model.init_args.policy.model": model,
        "model.init_args.policy.lora.dropout": 0.0,
        "data.init_args.train_files": f"[{episodes}]",
        "data.init_args.batch_size": 2,
        "model.init_args.batching.micro_batch_tokens": 500,
    }
    flat = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    flat += ["--model.init_args.length_coef", "0.1"] if config == SFT else []
    return [sys.executable, "-m", "lit_rft.cli", "fit", "-c", config, *flat, *more]


OFFLINE = "glider/scienceworld/offline_rl.yaml"
MIXED = [
    "--model.init_args.policy.start_from", "null",
    "--model.init_args.critic.cache_dir", "null",
    "--data.init_args.medium_per_expert", "0.5",
]  # fmt: skip


def _run(command: list[str], fails: bool = False) -> str:
    """What it says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert bool(result.returncode) == fails, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    weights: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return weights


def _norms(folder: Path) -> dict[str, list[float]]:
    """Of the gradients of each step: to Adam, gradients that are all twice as large are the same ones."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.endswith("grad_norm")]
    assert tags
    return {tag: [scalar.value for scalar in events.Scalars(tag)] for tag in tags}


# one process has nothing to do
FLAT_ONE = ["--model.init_args.agent", "lit_rft.agents.FlatAgent", "--data.init_args.batch_size", "1"]


ALL_WEIGHTS = ["--model.init_args.policy.lora", "null"]
DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
FSDP = ["-c", "fsdp.yaml", "--trainer.devices", "2"]


@pytest.mark.parametrize(
    ("config", "more", "processes"),
    [
        (SFT, [], DDP),
        (SFT, FLAT_ONE, DDP),
        (OFFLINE, MIXED, DDP),
        (SFT, [*FLAT_ONE, *ALL_WEIGHTS], FSDP),
        (OFFLINE, [*MIXED, "--model.init_args.policy.gradient_checkpointing", "true"], FSDP),
    ],
    ids=["hierarchical", "unequal work", "offline rl", "unequal work, split weights", "offline rl, split weights"],
)
def test_two_processes_equal_one(
    config: str, more: list[str], processes: list[str], tiny_model_folder: Path, episodes: Path, tmp_path: Path
) -> None:
    if processes == FSDP:  # an output layer that shares its weights with the embedding stays whole
        AutoModelForCausalLM.from_pretrained(tiny_model_folder, tie_word_embeddings=True).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(tmp_path)
        tiny_model_folder = tmp_path
    if config == OFFLINE:
        more = [*more, "--data.init_args.medium_files", f"[{episodes}]"]
    _run(_command(tiny_model_folder, episodes, tmp_path / "one", *more, config=config))
    _run(_command(tiny_model_folder, episodes, tmp_path / "two", *more, *processes, config=config))
    one, both = _weights(tmp_path / "one"), _weights(tmp_path / "two")
    assert one.keys() == both.keys()
    for name, weight in one.items():
        torch.testing.assert_close(both[name], weight, rtol=1e-3, atol=2e-5)
    norms = _norms(tmp_path / "one")
    assert _norms(tmp_path / "two") == {tag: pytest.approx(values, rel=1e-3) for tag, values in norms.items()}
    (exported,) = (tmp_path / "two" / "adapter").glob("*model.safetensors")
    for name, weight in load_file(exported).items():  # the last step's weights, whole
        checkpointed = name.replace(".weight", ".default.weight") if "lora_" in name else name
        assert torch.equal(weight, both[f"policy.{checkpointed}"])
    before = load_file(tiny_model_folder / "model.safetensors")
    moved = [w - before.get(name.removeprefix("policy."), 0.0) for name, w in one.items() if "lora_A" not in name]
    assert any(change.abs().max() > 1e-3 for change in moved)  # it did train


def _stopped(command: list[str], last: Path, number: int, beyond: int) -> tuple[int, int]:
    """Send a run a signal after it has saved a later step than `beyond`: its exit code, and the step it left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    end = time.monotonic() + 200
    while (not last.exists() or _step(last) <= beyond) and time.monotonic() < end:
        time.sleep(0.05)
        assert process.poll() is None, f"ended by itself with exit code {process.returncode}"
    time.sleep(0.3)
    os.kill(process.pid, number)
    return process.wait(100), _step(last)


def _step(last: Path) -> int:
    return int(torch.load(last, weights_only=True)["global_step"])


def test_kill_and_resume_equals_an_uninterrupted_run(tiny_model_folder: Path, episodes: Path, tmp_path: Path) -> None:
    callbacks = str(tmp_path / "callbacks.yaml")
    Path(callbacks).write_text(
        "trainer:\n  callbacks:\n  - class_path: lit_rft.callbacks.RandomState\n"
        "  - class_path: lit_rft.callbacks.RunCheckpoint\n    init_args: {every_n_steps: 1}\n"
        "  - class_path: lit_rft.callbacks.AdapterExport\n"
    )
    more = ["-c", callbacks, "--trainer.max_epochs", "20", "--model.init_args.policy.lora.dropout", "0.2"]
    more += ["--data.init_args.seed", "0"]  # the order of the data would follow seed_everything, and be refused
    whole = _command(tiny_model_folder, episodes, tmp_path / "whole", *more)
    parts = _command(tiny_model_folder, episodes, tmp_path / "parts", *more)
    _run(whole)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    code, killed = _stopped(parts, last, signal.SIGKILL, 0)
    assert code == -signal.SIGKILL and 0 < killed < 100, f"killed after {killed} of 100 steps"
    resume = [*parts, "--ckpt_path", "last", "--seed_everything", "99"]  # starting anew would give other weights
    adapter = tmp_path / "parts" / "adapter" / "adapter_config.json"
    assert not adapter.exists()
    code, stopped = _stopped(resume, last, signal.SIGTERM, killed)
    assert code == 128 + signal.SIGTERM and killed < stopped < 100, f"stopped after {stopped} of 100 steps"
    assert adapter.exists()
    _run(resume)
    expected, resumed = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    for name, weight in expected.items():
        assert torch.equal(resumed[name], weight), name


@pytest.mark.parametrize("kind", ["episodes", "prompts"])
def test_two_processes_play_and_answer_what_one_does(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Unequal shares, with weights that are whole or split; adapters act."""
    script = str(Path(__file__).with_name("play_in_processes.py"))
    adapter = tmp_path / "adapter"
    with_adapters(AutoModelForCausalLM.from_pretrained(tiny_model_folder)).save_pretrained(adapter)
    found = {}
    for strategy, devices in (("auto", 1), ("ddp", 2), ("fsdp", 2)):
        folder = tmp_path / strategy
        folder.mkdir()
        _run([sys.executable, script, kind, str(tiny_model_folder), str(adapter), str(folder), str(devices), strategy])
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
    assert whole and found["ddp"][0] == whole == found["fsdp"][0]


def test_two_processes_fine_tune_online(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Unequal shares (three episodes a round) equal one process; the buffer is everyone's, and is resumed."""
    script = str(Path(__file__).with_name("online_in_processes.py"))
    write_episodes(tmp_path / "stored.jsonl", [make_episode(seed, 4) for seed in range(3)])

    def run(steps: int, *more: str, strategy: str = "ddp", devices: int = 2) -> list[dict[str, Any]]:
        arguments = [str(tiny_model_folder), str(tmp_path), str(devices), str(steps), strategy]
        _run([sys.executable, script, *arguments, *more])
        return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]

    (one,) = run(6, strategy="auto", devices=1)  # two rounds of three updates
    assert any(weight.abs().max() > 1e-3 for name, weight in one["weights"].items() if "lora_B" in name)  # it did train
    last = tmp_path / "checkpoints" / "last.ckpt"
    for strategy in ("fsdp", "ddp"):
        shutil.rmtree(tmp_path / "checkpoints")
        found = run(6, strategy=strategy)
        for each in found:
            assert each["replay"] == one["replay"]
        check_close(found[0]["weights"], one["weights"])
        checkpoint = torch.load(last, weights_only=True)
        assert checkpoint["replay"] == found[0]["replay"] and len(checkpoint["replay"]) == 5
    assert all(torch.equal(weight, found[1]["weights"][name]) for name, weight in found[0]["weights"].items())
    two = last.with_name("two.ckpt")
    shutil.copy(last, two)
    resumed = run(9, str(last))
    (alone,) = run(9, str(two), strategy="auto", devices=1)
    assert alone["replay"] == resumed[0]["replay"]
    check_close(resumed[0]["weights"], alone["weights"])
    shutil.rmtree(tmp_path / "checkpoints")
    for each, other in zip(resumed, run(9), strict=True):  # to the bit as without the stop
        assert each["replay"] == other["replay"]
        assert all(torch.equal(weight, other["weights"][name]) for name, weight in each["weights"].items())


class MixedPolicy:
    """Runs of mixed-policy GRPO in a folder for each strategy."""

    def __init__(self, kind: str, model: Path, folder: Path) -> None:
        self.kind, self.model, self.folder = kind, str(model), folder
        self.script = str(Path(__file__).with_name("mixed_policy_in_processes.py"))

    def command(self, strategy: str, devices: int, steps: int, *more: str) -> list[str]:
        folder = self.folder / strategy
        folder.mkdir(exist_ok=True)
        start = [sys.executable, self.script, self.kind, self.model, str(folder)]
        return [*start, str(devices), str(steps), strategy, *more]

    def run(self, strategy: str, devices: int, steps: int, *more: str) -> list[dict[str, torch.Tensor]]:
        """The weights of each process."""
        _run(self.command(strategy, devices, steps, *more))
        folder = self.folder / strategy
        return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]

    def last(self, strategy: str) -> list[str]:
        return ["--ckpt_path", str(self.folder / strategy / "checkpoints" / "last.ckpt")]


def check_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("kind", ["prompts", "episodes"])
def test_mixed_policy_in_two_processes(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Three groups a round: unequal shares of them and of micro-batches equal one process; a stopped run goes on."""
    runs = MixedPolicy(kind, tiny_model_folder, tmp_path)
    (one,) = runs.run("auto", 1, 4)
    assert any(weight.abs().max() > 1e-3 for name, weight in one.items() if "lora_B" in name)  # it did train
    runs.run("ddp", 2, 2)
    first, second = runs.run("ddp", 2, 4, *runs.last("ddp"))
    check_close(first, one)
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    runs.run("fsdp", 2, 2)
    check_close(runs.run("fsdp", 2, 4, *runs.last("fsdp"))[0], one)
    if kind == "prompts":  # a checkpoint of other adapters is refused
        other = runs.command("fsdp", 2, 6, *runs.last("fsdp"), "--targets", "q_proj")
        assert "the checkpoint does not fit the model: the adapter has other settings" in _run(other, fails=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_the_other(rank: int, tiny_model_folder: Path, tmp_path: Path) -> None:
    """One does not wait for the other's rollouts until the process group's half hour is over."""
    runs = MixedPolicy("prompts", tiny_model_folder, tmp_path)
    said = _run(runs.command("ddp", 2, 2, "--fails", str(rank)), fails=True)
    assert "no reward today" in said


@pytest.mark.parametrize("kind", ["prompts", "episodes"])
def test_two_processes_sample_by_one_server(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """One adapter a rollout, whether weights are split or not, and what is sampled does not depend on who asks."""
    fake = FakeVllm(AutoModelForCausalLM.from_pretrained(tiny_model_folder))
    runs = MixedPolicy(kind, tiny_model_folder, tmp_path)
    with serving(fake) as url:
        (one,) = runs.run("auto", 1, 2, "--url", url)
        check_close(runs.run("fsdp" if kind == "prompts" else "ddp", 2, 2, "--url", url)[0], one)
    assert any(weight.abs().max() > 1e-3 for name, weight in one.items() if "lora_B" in name)
    assert len(folders(fake)) == 2 * 1 and not fake.adapters  # one rollout of two steps
    if kind == "prompts":  # without a server all processes end, and say why
        said = _run(runs.command("ddp", 2, 2, "--url", "http://127.0.0.1:9"), fails=True)
        assert said.count("is `vllm serve` running there") >= 2


@pytest.mark.parametrize("more", [[], ALL_WEIGHTS], ids=["adapters", "all weights"])
def test_split_weights_in_half_precision(
    more: list[str], tiny_model_folder: Path, episodes: Path, tmp_path: Path
) -> None:
    """Weights are gathered in bf16: the same direction as one process in bf16-mixed, up to rounding."""
    half = [*more, "--trainer.precision", "bf16-mixed"]
    _run(_command(tiny_model_folder, episodes, tmp_path / "one", *half))
    _run(_command(tiny_model_folder, episodes, tmp_path / "two", *half, *FSDP))
    one, both = _weights(tmp_path / "one"), _weights(tmp_path / "two")
    norms, halves = _norms(tmp_path / "one")["train/grad_norm"], _norms(tmp_path / "two")["train/grad_norm"]
    assert halves[0] == pytest.approx(norms[0], rel=0.05)  # later ones are of other weights
    assert one.keys() == both.keys() and all(weight.dtype == torch.float32 for weight in both.values())
    before = load_file(tiny_model_folder / "model.safetensors")
    names = [name for name in one if "lora_A" not in name]
    moved = [
        torch.cat([(w[name] - before.get(name.removeprefix("policy."), 0.0)).flatten() for name in names])
        for w in (one, both)
    ]
    assert moved[0].norm() > 0.1
    assert torch.cosine_similarity(*moved, dim=0) > 0.95
