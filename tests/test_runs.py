"""Whole runs of `lit-rft`: two processes equal one, kill -9 and resume equals none."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command import main
from process_pair import ProcessPair
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rft.episodes import write_episodes
from lit_rft.testing.tiny import make_episode


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
    return ["fit", "-c", config, *flat, *more]


OFFLINE = "glider/scienceworld/offline_rl.yaml"
MIXED = [
    "--model.init_args.policy.start_from", "null",
    "--model.init_args.critic.cache_dir", "null",
    "--data.init_args.medium_per_expert", "0.5",
]  # fmt: skip


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
        pytest.param(
            OFFLINE, [*MIXED, "--model.init_args.policy.gradient_checkpointing", "true"], FSDP, marks=pytest.mark.slow
        ),
    ],
    ids=["hierarchical", "unequal work", "offline rl", "unequal work, split weights", "offline rl, split weights"],
)
def test_two_processes_equal_one(
    config: str,
    more: list[str],
    processes: list[str],
    pair: ProcessPair,
    tiny_model_folder: Path,
    episodes: Path,
    tmp_path: Path,
) -> None:
    if processes == FSDP:  # an output layer that shares its weights with the embedding stays whole
        AutoModelForCausalLM.from_pretrained(tiny_model_folder, tie_word_embeddings=True).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(tmp_path)
        tiny_model_folder = tmp_path
    if config == OFFLINE:
        more = [*more, "--data.init_args.medium_files", f"[{episodes}]"]
    main(_command(tiny_model_folder, episodes, tmp_path / "one", *more, config=config))
    pair.run("lit_rft.cli", _command(tiny_model_folder, episodes, tmp_path / "two", *more, *processes, config=config))
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


def test_two_processes_overwrite_a_run(
    pair: ProcessPair, tiny_model_folder: Path, episodes: Path, tmp_path: Path
) -> None:
    """Both wait for the removal of the earlier one, and neither takes its checkpoints for those of another run."""
    run = _command(tiny_model_folder, episodes, tmp_path / "run", *DDP, *FLAT_ONE)
    pair.run("lit_rft.cli", [*run, "--trainer.max_steps", "3"])
    text = tmp_path / "run" / "texts" / "val" / "episode.md"
    text.parent.mkdir(parents=True)
    text.write_text("of the earlier run")
    pair.run("lit_rft.cli", [*run, "--trainer.max_steps", "2", "--overwrite", "true"])
    assert _step(tmp_path / "run" / "checkpoints" / "last.ckpt") == 2 and not text.exists()


@pytest.mark.slow
def test_the_command_starts_its_second_process(tiny_model_folder: Path, episodes: Path, tmp_path: Path) -> None:
    """What a user types; the other tests run in processes that are there already."""
    (tmp_path / "ranks.py").write_text(
        "from pathlib import Path\n\nfrom lightning import Callback\n\n\nclass Ranks(Callback):\n"
        "    def on_train_end(self, trainer, stage):\n        Path(f'rank{trainer.global_rank}').touch()\n"
    )
    more = ["--trainer.max_steps", "2", "--trainer.callbacks+", "ranks.Ranks"]
    arguments = _command(tiny_model_folder, episodes, tmp_path / "run", *DDP, *more)
    command = [sys.executable, "-m", "lit_rft.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert {path.name for path in tmp_path.glob("rank[0-9]")} == {"rank0", "rank1"}
    assert _step(tmp_path / "run" / "checkpoints" / "last.ckpt") == 2


def _stopped(command: list[str], last: Path, number: int, beyond: int) -> tuple[int, int]:
    """Send a run a signal after it has saved a later step than `beyond`: its exit code, and the step it left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_rft.cli", *command]
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


@pytest.mark.slow
def test_kill_and_resume_equals_an_uninterrupted_run(tiny_model_folder: Path, episodes: Path, tmp_path: Path) -> None:
    callbacks = str(tmp_path / "callbacks.yaml")
    Path(callbacks).write_text(
        "trainer:\n  callbacks:\n  - class_path: lit_rft.callbacks.RandomState\n"
        "  - class_path: lit_rft.callbacks.RunCheckpoint\n    init_args: {every_n_steps: 1}\n"
        "  - class_path: lit_rft.callbacks.AdapterExport\n"
    )
    more = ["-c", callbacks, "--trainer.max_epochs", "12", "--model.init_args.policy.lora.dropout", "0.2"]
    more += ["--data.init_args.seed", "0"]  # the order of the data would follow seed_everything, and be refused
    whole = _command(tiny_model_folder, episodes, tmp_path / "whole", *more)
    parts = _command(tiny_model_folder, episodes, tmp_path / "parts", *more)
    main(whole)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    code, killed = _stopped(parts, last, signal.SIGKILL, 0)
    assert code == -signal.SIGKILL and 0 < killed < 60, f"killed after {killed} of 60 steps"
    resume = [*parts, "--ckpt_path", "last", "--seed_everything", "99"]  # starting anew would give other weights
    adapter = tmp_path / "parts" / "adapter" / "adapter_config.json"
    assert not adapter.exists()
    code, stopped = _stopped(resume, last, signal.SIGTERM, killed)
    assert code == 128 + signal.SIGTERM and killed < stopped < 60, f"stopped after {stopped} of 60 steps"
    assert adapter.exists()
    main(resume)
    expected, resumed = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    for name, weight in expected.items():
        assert torch.equal(resumed[name], weight), name


@pytest.mark.parametrize("more", [[], ALL_WEIGHTS], ids=["adapters", "all weights"])
def test_split_weights_in_half_precision(
    more: list[str], pair: ProcessPair, tiny_model_folder: Path, episodes: Path, tmp_path: Path
) -> None:
    """Weights are gathered in bf16: the same direction as one process in bf16-mixed, up to rounding."""
    half = [*more, "--trainer.precision", "bf16-mixed"]
    main(_command(tiny_model_folder, episodes, tmp_path / "one", *half))
    pair.run("lit_rft.cli", _command(tiny_model_folder, episodes, tmp_path / "two", *half, *FSDP))
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
