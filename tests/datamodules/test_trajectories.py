"""The data module: what it trains on, what it refuses."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lit_rft.agents import FlatAgent, HierarchicalAgent
from lit_rft.datamodules import TrajectoryDataModule
from lit_rft.episodes import DistinctFailures, Episode, EpisodeError
from lit_rft.episodes.io import read_episodes, write_episodes
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny import make_episode
from lit_rft.testing.tiny_stage import make_stage


def _module(model: Path, folder: Path, **options: Any) -> TrajectoryDataModule:
    return TrajectoryDataModule(str(model), suite=CorridorSuite(), data_dir=str(folder), **options)


def test_expert_episodes_are_collected_once(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = _module(tiny_model_folder, tmp_path, train_episodes_per_task=2)
    data.setup("fit")
    assert len(data.episodes) == 4 and all(e.outcome.success for e in data.episodes)
    written = data.expert_file.stat().st_mtime_ns
    again = _module(tiny_model_folder, tmp_path, train_episodes_per_task=2)
    again.setup("fit")
    assert again.episodes == data.episodes and again.expert_file.stat().st_mtime_ns == written
    levels = {t.level for batch in data.train_dataloader().episodes for t in batch}
    assert levels == {"high", "low"}


def test_files_and_folders_of_episodes(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_episodes(tmp_path / "in" / "a.jsonl", [make_episode(0)])
    write_episodes(tmp_path / "b.parquet", [make_episode(1)])
    files = [str(tmp_path / "in"), str(tmp_path / "b.parquet")]
    data = _module(tiny_model_folder, tmp_path, train_files=files, agent=FlatAgent())
    data.setup("fit")
    assert [e.id for e in data.episodes] == ["find-plant/0", "find-plant/1"]
    assert {t.level for batch in data.train_dataloader().episodes for t in batch} == {"flat"}


def test_a_filter_selects_among_medium_quality_episodes(tiny_model_folder: Path, tmp_path: Path) -> None:
    write_episodes(tmp_path / "a.jsonl", [make_episode(0)])
    write_episodes(tmp_path / "b.jsonl", [make_episode(1), make_episode(2), make_episode(3)])
    files = {"train_files": [str(tmp_path / "a.jsonl")], "medium_files": [str(tmp_path / "b.jsonl")]}
    data = _module(tiny_model_folder, tmp_path, **files, medium_filter=lambda episodes: episodes[::2])
    data.setup("fit")
    loader = data.train_dataloader()
    assert [e.id for e in data.episodes] == ["find-plant/0", "find-plant/1", "find-plant/3"]
    assert len(loader.episodes) == 1 and len(loader.mixed_episodes) == 2


def test_truncation_is_reported(tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_episodes(tmp_path / "a.jsonl", [make_episode(0, 12)])
    agent = HierarchicalAgent(max_length=600)
    data = _module(tiny_model_folder, tmp_path, train_files=[str(tmp_path / "a.jsonl")], agent=agent)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert "lost their first turns" in caplog.text
    assert all(len(t) <= 600 for batch in data.train_dataloader().episodes for t in batch)


def test_expert_episodes_of_other_tasks_are_not_trained_on(tiny_model_folder: Path, tmp_path: Path) -> None:
    for tasks in (["walk", "run"], ["walk"], None):
        data = _module(tiny_model_folder, tmp_path, train_files=None, tasks=tasks)
        data.setup("fit")
        assert {episode.task for episode in data.episodes} == set(tasks or ["walk", "run"])


def test_evaluation_and_prediction_jobs(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = _module(tiny_model_folder, tmp_path, eval_episodes_per_task=1, predict_split="test", predict_repeats=3)
    data.setup("test")
    played = [job for batch in data.test_dataloader() for job in batch.jobs]
    assert [job.options["task"] for job in played] == ["walk", "run"]
    assert all(job.split == "dev" and job.options["variation"] in (4, 5) for job in played)
    data.setup("predict")
    ids = [job.id for batch in data.predict_dataloader() for job in batch.jobs]
    assert len(ids) == len(set(ids)) == 2 * 3 * 3


def test_a_corrupt_file_names_file_and_line(tiny_model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_episodes(path, [make_episode(0), make_episode(1)])
    path.write_text(path.read_text()[:-40])
    data = _module(tiny_model_folder, tmp_path, train_files=[str(path)])
    with pytest.raises(EpisodeError, match=r"a\.jsonl:2"):
        data.setup("fit")


def test_an_empty_data_set_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_episodes(path, [])
    data = _module(tiny_model_folder, tmp_path, train_files=[str(path)])
    with pytest.raises(ValueError, match="expected episodes with steps to train on"):
        data.setup("fit")


def test_medium_episodes_that_leave_nothing_to_train_on_are_named(tiny_model_folder: Path, tmp_path: Path) -> None:
    experts, medium = tmp_path / "experts.jsonl", tmp_path / "medium.jsonl"
    write_episodes(experts, [make_episode(0)])
    write_episodes(medium, [])
    settings: dict[str, Any] = {"train_files": [str(experts)], "medium_files": [str(medium)]}
    with pytest.raises(ValueError, match=r"in \S+medium\.jsonl: set data.init_args.medium_files to others"):
        _module(tiny_model_folder, tmp_path, **settings).setup("fit")
    write_episodes(medium, [make_episode(1)])  # a success
    message = r"medium_filter kept none of the 1 episodes in \S+medium\.jsonl: set data.init_args.medium_files"
    with pytest.raises(ValueError, match=message):
        _module(tiny_model_folder, tmp_path, medium_filter=DistinctFailures(), **settings).setup("fit")


def test_an_episode_without_subgoals_is_refused_for_a_hierarchy(tiny_model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_episodes(path, [make_episode(0, subgoals=False)])
    with pytest.raises(ValueError, match="annotate it first"):
        _module(tiny_model_folder, tmp_path, train_files=[str(path)]).setup("fit")
    _module(tiny_model_folder, tmp_path, train_files=[str(path)], agent=FlatAgent()).setup("fit")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"predict_repeats": 0}, "predict_repeats must be >= 1"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryDataModule(**bad)


def test_episodes_without_a_suite_train_and_nothing_else(tiny_model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_episodes(path, [make_episode(0)])
    data = TrajectoryDataModule(str(tiny_model_folder), train_files=[str(path)], batch_size=1)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 1
    for verb in ("validate", "test", "predict"):
        with pytest.raises(ValueError, match="no tasks to play: set"):
            data.setup(verb)
    with pytest.raises(ValueError, match="no tasks to play"):
        TrajectoryDataModule(str(tiny_model_folder)).setup("fit")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(ValueError, match="limit_val_batches 0"):
        trainer.fit(make_stage(tiny_model_folder), datamodule=data)


def test_an_unknown_task_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown task 'swim'"):
        _module(tiny_model_folder, tmp_path, tasks=["swim"]).setup("fit")


def test_what_was_collected_reads_back(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = _module(tiny_model_folder, tmp_path, train_episodes_per_task=1)
    assert data.collect() == read_episodes(data.expert_file)


def one_goal(episode: Episode) -> list[tuple[int, int, str]]:
    return [(0, len(episode.steps), "solve it all")]


def test_an_annotator_of_the_users_own(tiny_model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_episodes(path, [make_episode(0, subgoals=False), make_episode(1)])
    data = _module(tiny_model_folder, tmp_path, train_files=[str(path)], annotate=one_goal)
    data.setup("fit")
    assert [[(g.goal, g.annotator) for g in e.subgoals] for e in data.episodes] == [[("solve it all", "one_goal")]] * 2
    bad = _module(tiny_model_folder, tmp_path, train_files=[str(path)], annotate=lambda episode: [(0, 1, "part")])
    with pytest.raises(EpisodeError):
        bad.setup("fit")


def test_episodes_of_another_step_limit_are_not_reused(tiny_model_folder: Path, tmp_path: Path) -> None:
    short, long = (
        TrajectoryDataModule(
            str(tiny_model_folder), suite=CorridorSuite(step_limit=limit), data_dir=str(tmp_path), tasks=["walk"]
        )
        for limit in (2, 6)
    )
    assert [e.outcome.truncated for e in short.collect()] == [True] * 4
    assert [e.outcome.truncated for e in long.collect()] == [False] * 4


def test_one_file_may_be_given_by_its_name() -> None:
    data = TrajectoryDataModule(train_files="a.jsonl", medium_files="b.jsonl")
    assert data.train_files == ["a.jsonl"] and data.medium_files == ["b.jsonl"]
    assert TrajectoryDataModule().train_files is None
