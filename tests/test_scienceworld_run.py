"""The command line on the real simulator: collect, fit, test, predict, with a tiny model that knows nothing."""

from pathlib import Path

import pytest
from command import main
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.episodes import read_episodes


@pytest.fixture
def arguments(tiny_model_folder: Path, tmp_path: Path) -> list[str]:
    settings = {
        "trainer.default_root_dir": tmp_path / "run",
        "trainer.precision": "32-true",
        "model.init_args.policy.model": tiny_model_folder,
        "model.init_args.acting.sampling.max_new_tokens": 4,
        "model.init_args.agent.init_args.max_length": 4000,  # a byte-level tokenizer writes long texts
        "data.init_args.data_dir": tmp_path / "data",
        "data.init_args.train_episodes_per_task": 1,
        "data.init_args.predict_split": "train",
        "data.init_args.predict_episodes_per_task": 1,
    }
    configs = ["-c", "glider/scienceworld/sft.yaml", "-c", "glider/scienceworld/debug.yaml"]
    return configs + [part for key, value in settings.items() for part in (f"--{key}", str(value))]


@pytest.mark.slow  # half a minute
def test_collect_fit_test_and_predict(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    main(["fit", *arguments])
    (expert,) = read_episodes(next((tmp_path / "data").glob("*.jsonl")))
    assert expert.env == "scienceworld" and expert.task == "find-plant" and expert.outcome.success and expert.subgoals
    assert (run / "checkpoints" / "last.ckpt").is_file() and (run / "adapter" / "adapter_config.json").is_file()
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"train/loss", "val/score", "val/find-plant/score"} <= set(events.Tags()["scalars"])
    assert any(tag.startswith("val/episode/find-plant") for tag in events.Tags()["tensors"])

    main(["test", *arguments, "--ckpt_path", "last"])
    out = capsys.readouterr().out
    assert "invalid" in out and "find-plant" in out

    main(["predict", *arguments, "--ckpt_path", "last"])
    (played,) = read_episodes(run / "episodes" / "predicted.jsonl")
    assert played.env == "scienceworld" and played.source["kind"] == "policy" and len(played.steps) == 20


@pytest.mark.slow
def test_groups_of_episodes_with_an_experts(
    tiny_model_folder: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LUFFY's objective over episodes of the simulator: two rollouts, then an evaluation."""
    more = {
        "model.init_args.policy.start_from": "null",
        "model.init_args.exploration.max_new_tokens": 4,
        "model.init_args.objective.group_size": 3,
        "model.init_args.acting.parallel_episodes": 2,
        "data.init_args.tasks": "[find-plant]",
        "data.init_args.train_episodes_per_task": 2,
        "data.init_args.eval_episodes_per_task": 1,
        "data.init_args.batch_size": 1,
        "trainer.accelerator": "cpu",
        "trainer.limit_val_batches": 1,
    }
    settings = arguments[arguments.index("--trainer.default_root_dir") :]
    command = ["-c", "luffy/scienceworld.yaml", *settings]
    main(["fit", *command, *[part for key, value in more.items() for part in (f"--{key}", str(value))]])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/trace_reward")] == [1, 2]
    assert all(point.value == 1.0 for point in events.Scalars("train/trace_reward"))  # the simulator's expert succeeds
    played = events.Scalars("online/score")
    assert len(played) == 2 and 0 < played[0].step < played[1].step <= 80  # environment steps of two groups
    assert "find-plant" in capsys.readouterr().out


def test_an_unknown_task_is_refused_before_any_work(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown task 'find-plants'.*find-plant"):
        main(["fit", *arguments, "--data.init_args.tasks", "[find-plants]"])
    assert not (tmp_path / "data").exists()


def test_last_without_a_checkpoint_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="no last checkpoint"):
        main(["test", *arguments, "--ckpt_path", "last"])
