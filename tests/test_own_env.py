"""An environment outside the library trains through the command line, with no file of the library changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import main
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PLUGINS = Path(__file__).parent / "plugins"


def arguments(model: Path, folder: Path, *more: str) -> list[str]:
    settings: dict[str, Any] = {
        "trainer.default_root_dir": folder,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.limit_val_batches": 2,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "model.init_args.policy.model": model,
        "model.init_args.policy.lora.rank": 2,
        "model.init_args.objective.group_size": 2,
        "model.init_args.acting.parallel_episodes": 2,
        "model.init_args.exploration.max_new_tokens": 3,
        "model.init_args.acting.sampling.max_new_tokens": 3,
        "data.suite.env": "guess_env.Guess",  # short for data.init_args.suite.init_args.env
        "data.suite.step_limit": 2,
        "data.init_args.batch_size": 2,
        "data.init_args.data_dir": folder / "data",
    }
    pairs = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return ["-c", "grpo/text_env.yaml", *pairs, *more]


def test_an_own_environment_trains_without_demonstrations(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))
    main(["fit", *arguments(tiny_model_folder, tmp_path)])
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "data").exists()  # no expert episodes were asked for
    main(["predict", *arguments(tiny_model_folder, tmp_path, "--data.init_args.predict_episodes_per_task", "2")])
    lines = (tmp_path / "episodes" / "predicted.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        assert (record["env"], record["task"], record["step_limit"]) == ("Guess", "Guess", 2)
        assert record["id"].startswith(f"Guess/train/{record['meta']['seed']}")
        assert record["outcome"]["score"] == sum(step["reward"] for step in record["steps"])
        assert record["outcome"]["success"] == (record["outcome"]["reason"] == "goal")
    assert len(lines) == 2


BRIEF = """\
import os
import pathlib
import gymnasium as gym


class Brief(gym.Env):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return f"Be brief, {self.np_random.integers(100)}.", {}

    def step(self, action):
        return "Thanks.", 1 - len(action) / 8, True, False, {}


class Fragile(Brief):
    def __init__(self, marker):
        self.marker = pathlib.Path(marker)

    def step(self, action):
        if not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), 9)
        return super().step(action)
"""


def tags(folder: Path) -> list[str]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return list(events.Tags()["scalars"])


def scalars(folder: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {point.step: point.value for point in events.Scalars(name)}


@pytest.mark.slow  # half a minute
def test_an_own_environment_goes_all_the_way(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checked, trained until its reward rises, interrupted and resumed, evaluated, played; a killed worker included."""
    (tmp_path / "brief_envs.py").write_text(BRIEF)
    monkeypatch.syspath_prepend(str(tmp_path))
    main(["check-env", "brief_envs.Brief", "--episodes", "2"])
    assert "Brief: 0 errors, 0 warnings" in capsys.readouterr().out

    keys: dict[str, Any] = {
        "data.suite.env": "brief_envs.Brief",
        "data.suite.name": "Brief",
        "trainer.max_steps": 10,
        "trainer.val_check_interval": 10,
        "model.init_args.optimizer.learning_rate": 0.03,
        "model.init_args.policy.lora": "null",
        "model.init_args.objective.group_size": 8,
        "model.init_args.exploration.max_new_tokens": 8,
        "data.init_args.predict_episodes_per_task": 4,
    }
    short = [part for key, value in keys.items() for part in (f"--{key}", str(value))]
    run = tmp_path / "run"
    main(["fit", *arguments(tiny_model_folder, run, *short)])
    fragile = ["--data.suite.env", "brief_envs.Fragile", "--data.suite.env_args"]
    killed = [*fragile, json.dumps({"marker": str(tmp_path / "killed")})]
    main(
        ["fit", *arguments(tiny_model_folder, run, *short, *killed), "--ckpt_path", "last", "--trainer.max_steps", "12"]
    )
    assert (tmp_path / "killed").exists()
    rewards = scalars(run, "train/reward")
    assert len(rewards) == 12
    values = [rewards[step] for step in sorted(rewards)]
    assert sum(values[-4:]) / 4 > sum(values[:4]) / 4 + 0.15

    main(["test", *arguments(tiny_model_folder, run, *short), "--ckpt_path", "last"])
    scores = json.loads((run / "scores.json").read_text())["mean"]
    assert scores["env_errors"] == 0
    main(["predict", *arguments(tiny_model_folder, run, *short), "--ckpt_path", "last"])
    killed = [*fragile, json.dumps({"marker": str(tmp_path / "again")})]
    records = (run / "episodes" / "predicted.jsonl").read_text()
    (run / "episodes" / "predicted.jsonl").unlink()
    main(["predict", *arguments(tiny_model_folder, run, *short, *killed), "--ckpt_path", "last"])
    assert (tmp_path / "again").exists() and len(records.splitlines()) == 4
    again = (run / "episodes" / "predicted.jsonl").read_text()
    assert sorted(again.replace("Fragile", "Brief").splitlines()) == sorted(records.splitlines())


def test_rows_of_a_file_are_tasks(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the environment of docs/environments.md."""
    page = (PLUGINS.parents[1] / "docs" / "environments.md").read_text()
    (tmp_path / "my_envs.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"task": "low", "number": 0}\n{"task": "high", "number": 3}\n')
    rows = ["--data.init_args.suite.init_args.rows", json.dumps({"test": str(tmp_path / "rows.jsonl")})]
    own = ["--data.init_args.suite.init_args.env", "my_envs.Guess"]
    split = ["--data.init_args.eval_split", "test"]
    main(["test", *arguments(tiny_model_folder, tmp_path, *own, *rows, *split)])
    assert set(json.loads((tmp_path / "scores.json").read_text())) == {"low", "high", "mean"}


def test_an_expert_of_ones_own_then_fine_tuning_then_grpo(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/environments.md, with its environment."""
    page = (PLUGINS.parents[1] / "docs" / "environments.md").read_text()
    (tmp_path / "my_solved_envs.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    env, expert = "my_solved_envs.Guess", tmp_path / "expert.jsonl"
    main(["collect", env, "--expert", "my_solved_envs.solve", "--episodes", "4", "--out", str(expert)])
    assert len(expert.read_text().splitlines()) == 4
    own = ["--data.suite.env", env, "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    run = tmp_path / "sft"
    settings = arguments(tiny_model_folder, run, *own, "--data.init_args.train_files", f"[{expert}]")[2:]
    left_out = ("--model.init_args.objective.group_size", "--model.init_args.exploration.max_new_tokens")
    pairs = zip(settings[::2], settings[1::2], strict=True)
    main(["fit", "-c", "grpo/text_env_sft.yaml", *(part for pair in pairs if pair[0] not in left_out for part in pair)])
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert "train/loss" in tags(run) and "val/score" in tags(run)  # it was played
    start = ["--model.init_args.policy.start_from", str(run / "checkpoints" / "last.ckpt")]
    main(["fit", *arguments(tiny_model_folder, tmp_path / "grpo", *own, *start)])
    assert (tmp_path / "grpo" / "checkpoints" / "last.ckpt").exists()


def test_demonstrations_that_are_needed_and_missing_are_an_error(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))
    wanted = "--model.init_args.objective.traces_per_group"
    with pytest.raises(ValueError, match="the suite 'Guess' has no expert to collect episodes"):
        main(["fit", *arguments(tiny_model_folder, tmp_path, wanted, "1")])


def test_an_environment_that_cannot_be_imported_is_an_error(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env no_envs\.Guess: No module named 'no_envs'"):
        main(["fit", *arguments(tiny_model_folder, tmp_path, "--data.init_args.suite.init_args.env", "no_envs.Guess")])
