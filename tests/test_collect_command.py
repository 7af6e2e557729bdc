"""`lit-rft collect`, and supervised fine-tuning on what it wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import main
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_rft.episodes import read_episodes

ROOMS = ["collect", "lit_rft.envs.games.KeyRooms", "--expert", "lit_rft.envs.games.rooms.expert", "--step_limit", "12"]


def losses(model: Path, folder: Path, episodes: Path, agent: str) -> list[float]:
    """Of supervised fine-tuning on a file of episodes."""
    settings: dict[str, Any] = {
        "trainer.default_root_dir": folder,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.max_epochs": -1,
        "trainer.max_steps": 6,
        "trainer.limit_val_batches": 0,
        "model.init_args.agent": f"lit_rft.agents.{agent}",
        "model.init_args.policy.model": model,
        "model.init_args.policy.lora": "null",
        "model.init_args.optimizer.learning_rate": 0.01,
        "data.init_args.train_files": f"[{episodes}]",
        "data.init_args.batch_size": 4,
    }
    flat = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    main(["fit", "-c", "glider/scienceworld/sft.yaml", *flat])
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [point.value for point in events.Scalars("train/loss")]


def test_an_expert_function_gives_episodes_to_learn_from(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "expert.jsonl"
    main([*ROOMS, "--episodes", "8", "--out", str(path), "--workers", "1"])
    episodes = read_episodes(path)
    assert f"{path}: 8 episodes, mean score 0." in capsys.readouterr().out
    assert all(episode.outcome.reason == "goal" and episode.source["kind"] == "expert" for episode in episodes)
    assert {tuple(span.goal for span in episode.subgoals) for episode in episodes} == {
        ("take the key", "open the door")
    }
    for agent in ("FlatAgent", "HierarchicalAgent"):
        values = losses(tiny_model_folder, tmp_path / agent, path, agent)
        assert len(values) == 6 and values[-1] < values[0] - 0.5


def test_pairs_of_a_file_give_episodes_to_learn_from(tiny_model_folder: Path, tmp_path: Path) -> None:
    pairs = [{"observation": f"The key is to the {way}.", "action": way} for way in ("north", "south", "east", "west")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    path = tmp_path / "episodes.jsonl"
    main(["collect", "--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(path), "--name", "rooms"])
    assert {(episode.task, len(episode.steps)) for episode in read_episodes(path)} == {("rooms", 1)}
    values = losses(tiny_model_folder, tmp_path / "run", path, "FlatAgent")
    assert values[-1] < values[0] - 0.5


def test_an_expert_sees_where_random_actions_have_led(tmp_path: Path) -> None:
    """A script would go on as if nothing had happened, and miss the door."""
    path = tmp_path / "random.jsonl"
    main([*ROOMS[:-1], "40", "--episodes", "6", "--out", str(path), "--random", "0.4", "--workers", "1"])
    episodes = read_episodes(path)
    assert all(episode.outcome.reason == "goal" and episode.source["kind"] == "perturbed" for episode in episodes)
    assert sum(len(episode.steps) for episode in episodes) / 6 > 7  # the shortest ways have 6 on average


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.jsonl"], "expected an environment or --pairs FILE"),
        (["no_envs.Guess", "--out", "x.jsonl"], r"env no_envs\.Guess: No module named"),
        (["lit_rft.envs.games.KeyRooms", "--out", "x.jsonl"], r"'KeyRooms' has no expert: .* --expert my_envs\.solve$"),
        ([*ROOMS[1:], "--out", "x.jsonl", "--random", "1.5"], r"--random: expected a number from 0 to 1, got '1\.5'"),
        ([*ROOMS[1:], "--out", "x.jsonl", "--random", "half"], "--random: expected a number from 0 to 1, got 'half'"),
        (["lit_rft.envs.games.KeyRooms", "--out", "x.jsonl", "--split", "night"], "has the splits train, dev, test"),
        (["lit_rft.envs.games.KeyRooms"], "the following arguments are required: --out"),
        (["--pairs", "no.jsonl", "--out", "x.jsonl"], "no.jsonl: No such file"),
        (
            ["lit_rft.envs.games.KeyRooms", "--pairs", "no.jsonl", "--out", "x.jsonl", "--step_limit", "3"],
            "an environment, --step_limit are for episodes that are played, not for --pairs",
        ),
        (
            ["lit_rft.testing.CorridorSuite", "--out", "x.jsonl", "--step_limit", "3", "--name", "a"],
            "--name, --step_limit would not change lit_rft.testing.CorridorSuite, a suite: set what it takes by --args",
        ),
    ],
)
def test_wrong_commands(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["collect", *arguments])


EXPERTS = """\
def first(observation, info):
    return "0"


def second(observation, info):
    return "1"


def third(observation, info):
    return 3


def fourth(observation, info):
    return None
"""


@pytest.fixture
def guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a collection of two episodes."""
    (tmp_path / "own_experts.py").write_text(EXPERTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = ["--out", str(tmp_path / "expert.jsonl"), "--workers", "1"]
    return ["collect", "lit_rft.envs.games.GuessNumber", "--expert", "own_experts.first", "--episodes", "2", *out]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["--expert", "own_experts.second"],
            r'expert.init_args.policy.object was "own_experts.first", is "own_experts',
        ),
        (["--step_limit", "2"], r"suite.init_args.step_limit was 50, is 2"),
        (["--args", '{"highest": 5}'], r"suite.init_args.env_args.highest was not recorded, is 5"),
        (["--expert", "own_experts.second", "--episodes", "3", "--seed", "4"], r"expert.init_args.policy"),
        (["--random", "0.5", "--step_limit", "2"], r"suite.init_args.step_limit was 50, is 2"),
        (["--random", "0.5", "--expert", "own_experts.second"], r"expert.init_args.policy"),
    ],
    ids=["expert", "step limit", "arguments", "other seeds", "random actions, step limit", "random actions, expert"],
)
def test_a_file_of_other_episodes_is_refused(change: list[str], message: str, guess: list[str]) -> None:
    """Its episodes would stay as they were, without a word."""
    main(guess)
    path = Path(guess[guess.index("--out") + 1])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"expert.jsonl has episodes of other settings, .*{message}"):
        main([*guess, *change])
    assert path.read_bytes() == before


def test_a_file_is_extended_by_episodes_of_the_same_settings(guess: list[str]) -> None:
    main(guess)
    main([*guess, "--episodes", "5", "--seed", "1"])
    main([*guess, "--random", "0.5"])  # medium-quality ones
    main([*guess, "--random", "0.3"])
    main([*guess, "--name", "longer", "--step_limit", "60"])  # another task
    ids = [episode.id for episode in read_episodes(Path(guess[guess.index("--out") + 1]))]
    assert [sum(kind in name for name in ids) for kind in ("/expert", "-0.5-", "-0.3-")] == [9, 2, 2]


def test_an_expert_that_returns_no_text_is_refused(guess: list[str]) -> None:
    with pytest.raises(ValueError, match=r"an expert must return text, or None to stop; got 3 \(int\)"):
        main([*guess, "--expert", "own_experts.third"])


def test_an_expert_that_stops_needs_no_other_step_limit(guess: list[str], caplog: pytest.LogCaptureFixture) -> None:
    main([*guess, "--expert", "own_experts.fourth"])
    assert "2 of 2 expert episodes end where the expert stopped" in caplog.text
    assert "step limit" not in caplog.text


def test_an_interrupted_collection_of_another_expert_is_refused(guess: list[str]) -> None:
    main(guess)
    path = Path(guess[guess.index("--out") + 1])
    path.rename(path.with_name("expert.jsonl.partial"))
    with pytest.raises(ValueError, match=r"expert\.jsonl\.partial has episodes of other settings"):
        main([*guess, "--expert", "own_experts.second"])
    main(guess)
    assert len(read_episodes(path)) == 2


def test_changed_rows_are_other_problems(tmp_path: Path) -> None:
    """The same ids, since a row has its number in the file."""
    rows, path = tmp_path / "rows.jsonl", str(tmp_path / "e.jsonl")
    suite = {"env": "lit_rft.envs.games.GuessNumber", "step_limit": 3, "rows": {"train": str(rows)}}
    command = ["collect", "lit_rft.envs.GymSuite", "--args", json.dumps(suite), "--out", path, "--workers", "1"]
    command += ["--expert", "lit_rft.envs.games.guess.expert"]
    rows.write_text('{"number": 3}\n')
    main(command)
    main(command)
    rows.write_text('{"number": 4}\n')
    with pytest.raises(ValueError, match=r"meta\.options\.number was 3, is 4"):
        main(command)


def test_a_suite_plays_the_expert_that_is_given(tmp_path: Path) -> None:
    suite = ["collect", "lit_rft.testing.CorridorSuite", "--episodes", "2", "--workers", "1"]
    main([*suite, "--out", str(tmp_path / "own.jsonl")])
    main([*suite, "--out", str(tmp_path / "given.jsonl"), "--expert", f"{__name__}.turn_left"])
    for name, action in (("own", "go right"), ("given", "go left")):
        episodes = read_episodes(tmp_path / f"{name}.jsonl")
        assert {step.action for episode in episodes for step in episode.steps} == {action}


def turn_left(observation: str, info: Any) -> str:
    return "go left"


def test_as_many_episodes_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the suite's usual number of seeds."""
    monkeypatch.setattr("lit_rft.env_commands._SEEDS", {"train": 3})
    for number in (2, 5):
        path = tmp_path / f"{number}.jsonl"
        main([*ROOMS, "--episodes", str(number), "--out", str(path), "--workers", "1"])
        assert len({episode.id for episode in read_episodes(path)}) == number
