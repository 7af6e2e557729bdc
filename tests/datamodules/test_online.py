"""Episodes to play in online training."""

from pathlib import Path
from typing import Any

import pytest

from lit_rft.agents import FlatAgent
from lit_rft.datamodules import EpisodeGroupDataModule, OnlineDataModule
from lit_rft.episodes import DistinctFailures, write_episodes
from lit_rft.testing import CorridorSuite
from lit_rft.testing.tiny import make_episode


def test_the_halves_are_the_tasks_episodes_apart(tiny_model_folder: Path, tmp_path: Path) -> None:
    def played(half: Any) -> set[str]:
        data = OnlineDataModule(
            model=str(tiny_model_folder), suite=CorridorSuite(), data_dir=str(tmp_path), collect_half=half
        )
        data.setup("fit")
        return {spec.id for spec in data.train_dataloader().jobs}

    first, second = played("first"), played("second")
    assert first and second and not first & second and first | second == played(None)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"train_half": "first"}, r"data\.init_args\.collect_half"),
        ({"collect_workers": 8}, r"acting\.parallel_episodes"),
    ],
)
def test_settings_of_collection_are_refused(options: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(options))}=.* has no effect .* set .*{remedy}"):
        OnlineDataModule(suite=CorridorSuite(), **options)
    OnlineDataModule(suite=CorridorSuite(), train_half=None, collect_workers=2)  # as written by an earlier run


def online(model: Path, folder: Path, files: tuple[int, ...] = (), **options: Any) -> OnlineDataModule:
    """Online data with stored episodes of these numbers, ready to train."""
    stored = folder / f"stored-{'-'.join(map(str, files))}.jsonl"
    write_episodes(stored, [make_episode(number, 2) for number in files])
    common: Any = {"model": str(model), "agent": FlatAgent(), "suite": CorridorSuite(), "data_dir": str(folder)}
    data = OnlineDataModule(**common, **({"train_files": [str(stored)]} if files else {}), **options)
    data.setup("fit")
    return data


def test_the_filter_selects_among_medium_episodes(tiny_model_folder: Path, tmp_path: Path) -> None:
    played = [make_episode(number, 2) for number in range(4)]
    for episode in played[:2]:
        episode.steps[-1].score = episode.outcome.score = 0.5
    write_episodes(tmp_path / "medium.jsonl", played)
    medium: Any = {"medium_files": [str(tmp_path / "medium.jsonl")], "medium_filter": DistinctFailures()}
    data = online(tiny_model_folder, tmp_path, (7,), **medium)
    batch = next(iter(data.train_dataloader()))
    names = [transcripts[0].episode_id for transcripts in batch.offline]
    assert names == ["find-plant/7", "find-plant/0", "find-plant/1"]
    with pytest.raises(TypeError, match="medium_filter"):  # it has no such episodes
        EpisodeGroupDataModule(medium_filter=DistinctFailures())


def test_a_position_is_of_the_stored_episodes_and_step_limits_too(tiny_model_folder: Path, tmp_path: Path) -> None:
    state = online(tiny_model_folder, tmp_path, (1, 2)).train_dataloader().state_dict()
    online(tiny_model_folder, tmp_path, (1, 2)).train_dataloader().load_state_dict(state)
    for files, suite in (((1, 3), CorridorSuite()), ((), CorridorSuite()), ((1, 2), CorridorSuite(step_limit=5))):
        other = online(tiny_model_folder, tmp_path, files)
        other.suite = suite
        other.setup("fit")
        with pytest.raises(ValueError, match="made with other training data"):
            other.train_dataloader().load_state_dict(state)


def test_no_episodes_to_play_are_an_error(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = online(tiny_model_folder, tmp_path, collect_half="second")
    data._jobs["collect"] = []  # as of tasks with one episode each
    with pytest.raises(ValueError, match="expected episodes to play in training, got none"):
        data.train_dataloader()
