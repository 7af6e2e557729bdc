"""The plug-in reward trains through the command line, named by its class path, and is not reported as accuracy."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import main
from plugins.format_reward import FormatReward
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

BONUS = 0.75  # more than half: taken for accuracy, every answer would be right


def arguments(model: Path, folder: Path, **more: Any) -> list[str]:
    rows = [{"id": f"p{i}", "prompt": f"What is {i}+1?", "ground_truth": str(i + 1)} for i in range(4)]
    folder.mkdir(exist_ok=True)
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "trainer.default_root_dir": folder / "run",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.enable_progress_bar": "false",
        "model.init_args.policy.model": model,
        "model.init_args.objective": '{"group_size": 2, "traces_per_group": 0}',
        "model.init_args.sampling.max_new_tokens": 6,
        "model.init_args.answering.sampling.max_new_tokens": 6,
        "data.init_args.train_tasks": "null",
        "data.init_args.eval_tasks": "null",
        "data.init_args.train_files": f'["{file}"]',
        "data.init_args.eval_files": f'["{file}"]',
        "data.init_args.batch_size": 2,
        **more,
    }
    return ["-c", "luffy/arithmetic.yaml", *(part for key, value in keys.items() for part in (f"--{key}", str(value)))]


def scalars(folder: Path, name: str) -> list[float]:
    events = EventAccumulator(str(folder / "run" / "tensorboard"))
    events.Reload()
    return [point.value for point in events.Scalars(name)]


def test_a_format_bonus_trains_and_does_not_change_the_reported_accuracy(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    bonus = {
        "model.init_args.reward": "plugins.format_reward.FormatReward",
        "model.init_args.reward.init_args.bonus": BONUS,
        "model.init_args.reward.init_args.pattern": "^",  # any answer has this form: a random model writes no boxes
    }
    given = arguments(tiny_model_folder, tmp_path, **bonus)
    main(["fit", *given])
    assert scalars(tmp_path, "train/reward") == pytest.approx([BONUS] * 2)
    assert scalars(tmp_path, "val/average") == [0.0]
    main(["test", *given, "--ckpt_path", "last"])
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["mean"]["average"] == 0.0


def test_the_reward_itself() -> None:
    reward = FormatReward(bonus=0.25)
    try:
        rows = [{"ground_truth": "2"}] * 3
        assert reward([r"\boxed{2}", r"\boxed{3}", "no idea"], rows) == [1.25, 0.25, 0.0]
    finally:
        reward.close()
