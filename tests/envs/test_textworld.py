"""TextWorld's games, made here with its own maker and compiler, and played by its engine."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import main

from lit_rft.envs import EnvPool, EpisodeEnv, PoolSettings, check_env
from lit_rft.envs.adapters import TextWorldEnv, TextWorldSuite
from lit_rft.envs.collect import collect_expert_episodes
from lit_rft.episodes import read_episodes

textworld = pytest.importorskip("textworld")

SOLUTION = ["take apple", "go east", "insert apple into box"]


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled game: an apple to take (1 point) and to put into a box in the next room (2 points), not to eat."""
    textworld.g_rng.set_seed(1)  # of the wording
    maker = textworld.GameMaker()
    kitchen, pantry = maker.new_room("kitchen"), maker.new_room("pantry")
    maker.connect(kitchen.east, pantry.west)
    maker.set_player(kitchen)
    apple, box = maker.new(type="f", name="apple"), maker.new(type="c", name="box")
    box.add_property("open")
    kitchen.add(apple)
    pantry.add(box)
    quest, event, fact = textworld.generator.Quest, textworld.generator.Event, maker.new_fact
    maker.quests = [
        quest(win_events=[event(conditions={fact("in", apple, maker.inventory)})], reward=1),
        quest(
            win_events=[event(conditions={fact("in", apple, box)})],
            fail_events=[event(conditions={fact("eaten", apple)})],
            reward=2,
        ),
    ]
    maker.set_walkthrough(SOLUTION)
    options = textworld.GameOptions()
    options.path = str(tmp_path_factory.mktemp("games") / "apple.z8")
    return Path(textworld.generator.compile_game(maker.build(), options))


def copy(game: Path, folder: Path, *suffixes: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in suffixes:
        shutil.copy(game.with_suffix(suffix), folder)
    return folder


def started(game: Path) -> tuple[EpisodeEnv, str, dict[str, Any]]:
    suite = TextWorldSuite({"train": str(game)})
    (spec,) = suite.episodes("train")
    env = EpisodeEnv(suite.make_env())
    return env, *env.reset(spec)


def test_a_game_is_played_to_its_end(game: Path) -> None:
    env, observation, info = started(game)
    assert observation.startswith("-= Kitchen =-") and "apple" in observation and ">" not in observation
    assert "After that, " in info["task_description"] and (info["env"], info["score"]) == ("textworld", 0.0)
    assert info["admissible"] == ["examine apple", "go east", "inventory", "look", "take apple"]
    third, rest = pytest.approx(1 / 3), pytest.approx(2 / 3)
    observation, reward, terminated, _, info = env.step("take apple")
    assert observation.startswith("You pick up the apple") and "one point" in observation
    assert (reward, terminated, info["score"], info["success"], info["valid"]) == (third, False, third, False, True)
    assert env.step("go east")[1] == 0.0
    observation, reward, terminated, truncated, info = env.step("insert apple into box")
    assert (reward, terminated, truncated, info["score"], info["success"]) == (rest, True, False, 1.0, True)
    assert "RESTART" not in observation and info["reason"] == "goal" and info["admissible"] == []
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step("look")
    env.close()


def test_a_game_can_be_lost(game: Path) -> None:
    env, *_ = started(game)
    env.step("take apple")
    _, reward, terminated, _, info = env.step("eat apple")
    assert (reward, terminated, info["success"], info["reason"]) == (0.0, True, False, "failed")
    assert info["score"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "action",
    ["save", "transcript", "restart", "quit", "undo", "tw-trace-actions", "go east. look", "look then go east",
     "a\0b", "look\0", "\ud800", "", "  ", "éat apple", "take moon", "go north", "look " * 2000],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_what_is_no_command_of_the_game_changes_nothing(
    game: Path, action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env, observation, _ = started(game)
    _, reward, terminated, _, info = env.step(action)
    assert (reward, terminated, info["valid"]) == (0.0, False, False)
    again, *_, info = env.step("Look\n!")
    assert again == observation and info["valid"]
    assert list(tmp_path.iterdir()) == []  # the interpreter's "save" and "transcript" write files here
    assert all(env.step(command)[4]["valid"] for command in SOLUTION)


def test_a_game_without_its_compiled_file_is_compiled(game: Path, tmp_path: Path) -> None:
    folder = copy(game, tmp_path / "games", ".json")
    (folder / "apple.ulx").touch()  # which TextWorld no longer runs
    env, observation, _ = started(folder)
    assert observation.startswith("-= Kitchen =-")
    assert [env.step(command)[2] for command in SOLUTION] == [False, False, True]
    (compiled,) = env.env._compiled.values()  # type: ignore[attr-defined]
    assert Path(compiled.name).is_dir()
    env.close()
    assert not Path(compiled.name).exists() and sorted(path.suffix for path in folder.iterdir()) == [".json", ".ulx"]


def test_files_that_cannot_be_played_are_errors(game: Path, tmp_path: Path) -> None:
    for name, message in (("old.ulx", "TextWorld 1.7 does not run .ulx"), ("zork.z8", "expected zork.json beside it")):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=message):
            TextWorldSuite({"train": str(tmp_path / name)}).episodes("train")
    with pytest.raises(ValueError, match=r"expected a game file of TextWorld .*zork\.z5"):
        TextWorldSuite({"train": str(tmp_path / "zork.z5")}).episodes("train")
    with pytest.raises(ValueError, match="no games at"):
        TextWorldSuite({"train": str(tmp_path / "*.z3")}).episodes("train")
    (tmp_path / "plain.json").write_text("{}")
    with pytest.raises(ValueError, match=r"plain.json: not a game of TextWorld"):
        started(tmp_path / "plain.json")
    with pytest.raises(ValueError, match=r"path of a game file as options\['game'\], got None"):
        TextWorldEnv().reset()
    with pytest.raises(ValueError, match="step_limit must be at least 1, got 0"):
        TextWorldSuite("games", step_limit=0)


def test_splits_and_tasks_by_folders(game: Path, tmp_path: Path) -> None:
    for name in ("train/fruit/easy", "train/tools", "train", "valid"):
        copy(game, tmp_path / name, ".z8", ".json")
    suite = TextWorldSuite(str(tmp_path), step_limit=7)
    specs = suite.episodes("train")
    assert [spec.task for spec in specs] == ["fruit/easy", "textworld", "tools"]
    assert specs[0].id == f"textworld/train/{tmp_path}/train/fruit/easy/apple".replace("//", "/")
    assert specs[0].meta["game"] == specs[0].options["game"] == str(tmp_path / "train/fruit/easy/apple.z8")
    assert {spec.step_limit for spec in specs} == {7} and len({spec.id for spec in specs}) == 3
    assert [spec.task for spec in suite.episodes("train", tasks=["tools"])] == ["tools"]
    with pytest.raises(ValueError, match="has the splits train, valid, got 'test'"):
        suite.episodes("test")
    pattern, folder = f"{tmp_path}/train/**/*.z8", str(tmp_path / "train" / "tools")
    mixed = TextWorldSuite({"train": [folder, pattern], "dev": pattern})
    assert len(mixed.episodes("train")) == len(mixed.episodes("dev")) == 3
    assert len(mixed.episodes("train", limit=2)) == 2 and len(mixed.episodes("train", half="second")) == 1


def test_the_walkthrough_is_the_expert(game: Path, tmp_path: Path) -> None:
    suite = TextWorldSuite({"train": str(game)})
    collect_expert_episodes(suite, suite.episodes("train"), tmp_path / "expert.jsonl")
    (episode,) = read_episodes(tmp_path / "expert.jsonl")
    assert [step.action for step in episode.steps] == SOLUTION
    assert (episode.outcome.success, episode.source["kind"]) == (True, "walkthrough")
    content = json.loads(game.with_suffix(".json").read_text())
    for metadata, message in (({}, "the game has no walkthrough"), ({"walkthrough": []}, "a list of commands")):
        (tmp_path / "game.json").write_text(json.dumps({**content, "metadata": metadata}))
        silent = TextWorldSuite({"train": str(tmp_path / "game.json")})
        with pytest.raises(ValueError, match=message):
            silent.expert.actions(silent.episodes("train")[0], {})


def test_threads_are_refused(game: Path) -> None:
    """Games that are loaded at the same time in one process disturb each other."""
    suite = TextWorldSuite({"train": str(game)})
    with EnvPool(suite.make_env, 1, PoolSettings(threads=True)) as pool:
        pool.submit(suite.episodes("train")[0])
        with pytest.raises(ValueError, match=r"cannot run in threads: set acting\.pool\.threads to false"):
            pool.wait()


def test_nothing_is_wrong_with_a_suite_of_games(game: Path) -> None:
    report = check_env(TextWorldSuite({"train": str(game)}, step_limit=6), episodes=2)
    assert report.findings == [] or [finding.level for finding in report.findings] == ["note"]  # equal rewards
    assert report.repeatable and report.name == "textworld"


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_game_is_learnt(game: Path, tiny_model_folder: Path, tmp_path: Path, stage: str) -> None:
    """From its walkthrough, and in a step of GRPO over episodes."""
    config = {"sft": ["glider/scienceworld/sft.yaml", "-c", "glider/scienceworld/flat_sft.yaml"]}
    settings: dict[str, Any] = {
        "trainer.default_root_dir": tmp_path,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 1,
        "trainer.val_check_interval": 1,
        "model.init_args.policy.model": tiny_model_folder,
        "model.init_args.policy.lora.rank": 2,
        "model.init_args.acting.sampling.max_new_tokens": 3,
        "model.init_args.acting.parallel_episodes": 2,
        "data.suite": "lit_rft.envs.adapters.TextWorldSuite",
        "data.suite.games": json.dumps({"train": str(game), "dev": str(game.parent)}),
        "data.suite.step_limit": 3,
        "data.init_args.data_dir": tmp_path / "data",
        "data.init_args.batch_size": 1,
    }
    if stage == "grpo":
        settings |= {"model.init_args.objective.group_size": 2, "model.init_args.exploration.max_new_tokens": 3}
    flat = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    main(["fit", "-c", *config.get(stage, ["grpo/text_env.yaml"]), *flat])
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    if stage == "sft":
        (file,) = (tmp_path / "data").rglob("*.jsonl")
        (episode,) = read_episodes(file)
        assert [step.action for step in episode.steps] == SOLUTION
