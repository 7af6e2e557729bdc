"""The acting baselines by their configurations: on a built-in game, from examples to a table."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import main
from fake_chat_server import chat_server

from lit_rft.episodes import read_episodes

SUITE = {
    "class_path": "lit_rft.envs.GymSuite",
    "init_args": {
        "env": "lit_rft.envs.games.KeyRooms", "step_limit": 4, "seeds": {"train": 6, "dev": 3},
        "expert_policy": "lit_rft.envs.games.rooms.expert",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expert")
    file = folder / "examples.jsonl"
    game = ["lit_rft.envs.games.KeyRooms", "--expert", "lit_rft.envs.games.rooms.expert"]
    main(["collect", *game, "--episodes", "4", "--step_limit", "12", "--out", str(file)])
    return file


def arguments(recipe: str, expert: Path, model: Path, folder: Path, **acting: Any) -> list[str]:
    """A shipped recipe with the game's suite, the tiny model, and short utterances."""
    agent: dict[str, Any] = {"examples": {"files": [str(expert)], "max_tokens": 300}}
    agent = {"agent": agent} if recipe == "reflexion" else agent
    settings = {"parallel_episodes": 2, "sampling": {"max_new_tokens": 6}, "pool": {"threads": True}, **acting}
    overlay = {
        "trainer": {
            "default_root_dir": str(folder), "accelerator": "cpu", "precision": "32-true", "max_epochs": 1,
            "limit_train_batches": 2, "limit_val_batches": 0,
        },
        "model": {"init_args": {"agent": {"init_args": agent}, "acting": settings, "policy": {"model": str(model)}}},
        "data": {
            "init_args": {
                "suite": SUITE, "data_dir": str(folder), "train_episodes_per_task": 2, "eval_episodes_per_task": 2,
                "predict_episodes_per_task": 2, "predict_split": "dev",
            }
        },
    }  # fmt: skip
    return ["-c", f"baselines/alfworld/{recipe}.yaml", "-c", json.dumps(overlay)]


@pytest.mark.parametrize("recipe", ["react", "reflexion", "swift_sage"])
def test_each_recipe_plays_and_reports(recipe: str, expert: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    given = arguments(recipe, expert, tiny_model_folder, tmp_path)
    if recipe == "swift_sage":
        main(["fit", *given])
        given += ["--ckpt_path", "last"]
    main(["test", *given])
    scores = json.loads((tmp_path / "scores.json").read_text())["mean"]
    costs = json.loads((tmp_path / "costs.json").read_text())
    trials = 3 if recipe == "reflexion" else 1
    assert costs["episodes"] == 2 * trials and costs["tokens_sampled"] > 0 and costs["tokens_read"] > 0
    assert 0 < costs["env_steps"] <= 8 * trials and costs["utterances"] >= costs["env_steps"]
    assert ("last_trial/score" in scores) == ("best_trial/success" in scores) == (recipe == "reflexion")
    main(["predict", *given])
    episodes = read_episodes(tmp_path / "episodes" / "predicted.jsonl")
    assert len(episodes) == 2 * trials and all(episode.split == "dev" for episode in episodes)


def test_a_server_plays_by_the_overlay(expert: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    with chat_server() as fake:
        given = arguments("react", expert, tiny_model_folder, tmp_path)
        server = {"url": fake.url, "model": "echo:Thought: x|Action: east", "key_variable": None}
        overlay = {"model": {"init_args": {"acting": {"chat_server": server}}}}
        given += ["-c", "baselines/chat_server.yaml", "-c", json.dumps(overlay)]
        main(["test", *given, "--trainer.default_root_dir", str(tmp_path)])
        requests = fake.requests()
    assert json.loads((tmp_path / "costs.json").read_text())["server/requests"] == len(requests) > 0
    first = requests[0]["body"]["messages"]
    assert "Example:\nTask: Fetch the key" in first[1]["content"] and first[0]["role"] == "system"
    assert requests[0]["body"]["stop"] == ["\nObservation:"]


def test_a_run_on_a_server_counts_its_retries_and_writes_the_key_nowhere(
    expert: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """In a folder of the run: configurations, curves, scores, costs and episodes."""
    key = "sk-0123456789"
    monkeypatch.setenv("MY_KEY", key)
    folder = tmp_path / "run"
    with chat_server() as fake:
        given = arguments("react", expert, tiny_model_folder, folder)
        server = {"url": fake.url, "model": "flaky:2", "key_variable": "MY_KEY", "pause": 0.01, "timeout": 60.0}
        overlay = {"model": {"init_args": {"acting": {"chat_server": server}}}}
        given += ["-c", "baselines/chat_server.yaml", "-c", json.dumps(overlay)]
        for verb in ("test", "predict"):
            main([verb, *given, "--trainer.default_root_dir", str(folder)])
        requests = fake.requests()
    assert {request["key"] for request in requests} == {f"Bearer {key}"}
    costs = json.loads((folder / "costs.json").read_text())
    assert costs["server/retries"] == 2 and costs["server/completion_tokens"] == 3 * costs["server/requests"] > 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"scores.json", "costs.json", "predicted.jsonl", "config_test.yaml", "hparams.yaml"} <= names
    assert not [path for path in files if key.encode() in path.read_bytes()]
    assert key not in "".join(capfd.readouterr()) + caplog.text
