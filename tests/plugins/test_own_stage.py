"""The plug-in stage trains, resumes and is evaluated through the command line, named by its class path."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import main
from plugins.own_stage import leave_one_out
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.rollouts import Rollout


def letter_e(completions: Any, rows: Any) -> list[float]:
    """A reward that a random model can learn."""
    return [text.count("e") / max(1, len(text)) for text in completions]


def config(model: Path, folder: Path, run: str, **trainer: Any) -> list[str]:
    rows = [{"id": f"p{i}", "prompt": f"What is {i}+1?", "ground_truth": str(i + 1)} for i in range(4)]
    problems = folder / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "policy": {"model": str(model), "lora": None},
        "optimizer": {"learning_rate": 3e-3},
        "sampling": {"max_new_tokens": 8, "temperature": 1.0},
        "reward": "plugins.test_own_stage.letter_e",
        "group_size": 8,
    }
    data = {"train_files": [str(problems)], "eval_files": [str(problems)], "batch_size": 4, "max_trace_length": 32}
    names = ("RandomState", "RunCheckpoint", "ScoreTable")
    settings = {
        "trainer": {
            "callbacks": [{"class_path": f"lit_rft.callbacks.{name}"} for name in names],
            "default_root_dir": str(folder / run), "accelerator": "cpu", "precision": "32-true",
            "enable_progress_bar": False, "val_check_interval": 1.0, "limit_val_batches": 1, "log_every_n_steps": 1,
            **trainer,
        },
        "model": {"class_path": "plugins.own_stage.Reinforce", "init_args": stage},
        "data": {"class_path": "lit_rft.datamodules.MathPromptDataModule", "init_args": data},
    }  # fmt: skip
    file = folder / f"{run}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return ["-c", str(file)]


def scalars(folder: Path, name: str) -> list[float]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [point.value for point in events.Scalars(name)]


@pytest.mark.slow
def test_an_own_stage_trains_resumes_and_is_evaluated(tiny_model_folder: Path, tmp_path: Path) -> None:
    main(["fit", *config(tiny_model_folder, tmp_path, "whole", max_steps=12)])
    rewards = scalars(tmp_path / "whole", "train/reward")
    assert sum(rewards[-3:]) > sum(rewards[:3])
    assert scalars(tmp_path / "whole", "val/average")[0] == 0.0
    main(["fit", *config(tiny_model_folder, tmp_path, "parts", max_steps=6)])
    resumed = config(tiny_model_folder, tmp_path, "parts", max_steps=12)
    main(["fit", *resumed, "--ckpt_path", "last"])
    ends = [torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "parts")]
    assert ends[0]["parts"]["source"] == ends[1]["parts"]["source"]
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name
    main(["test", *resumed, "--ckpt_path", "last"])
    assert json.loads((tmp_path / "parts" / "scores.json").read_text())["mean"]["problems"] == 4


def test_its_baseline() -> None:
    rollouts = [Rollout([], "", group, False, True, reward=reward) for group, reward in ((0, 1.0), (0, 4.0), (0, 7.0))]
    leave_one_out(rollouts)
    assert [rollout.advantage for rollout in rollouts] == pytest.approx([-4.5, 0.0, 4.5])
