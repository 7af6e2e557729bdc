"""An environment outside the library trains through the command line, with no file of the library changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import main

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
        "data.init_args.suite.class_path": "lit_rft.envs.GymSuite",
        "data.init_args.suite.init_args.env": "guess_env.Guess",
        "data.init_args.suite.init_args.step_limit": 2,
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
    main(["predict", *arguments(tiny_model_folder, tmp_path, "--data.init_args.predict_variations", "2")])
    lines = (tmp_path / "episodes" / "predicted.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        assert (record["env"], record["task"], record["step_limit"]) == ("Guess", "Guess", 2)
        assert record["id"].startswith(f"Guess/train/{record['meta']['seed']}")
        assert record["outcome"]["score"] == sum(step["reward"] for step in record["steps"])
        assert record["outcome"]["success"] == (record["outcome"]["reason"] == "goal")
    assert len(lines) == 2


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


def test_demonstrations_that_are_needed_and_missing_are_an_error(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS))
    wanted = "--model.init_args.objective.traces_per_group"
    with pytest.raises(ValueError, match="the suite 'Guess' has no expert that could collect episodes"):
        main(["fit", *arguments(tiny_model_folder, tmp_path, wanted, "1")])


def test_an_environment_that_cannot_be_imported_is_an_error(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env no_envs\.Guess: No module named 'no_envs'"):
        main(["fit", *arguments(tiny_model_folder, tmp_path, "--data.init_args.suite.init_args.env", "no_envs.Guess")])
