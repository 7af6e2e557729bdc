"""An OpenAI-compatible server acts in a stage's evaluation: all levels of an agent, or some beside the policy."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from fake_chat_server import FakeChatServer, chat_server

from lit_rft.agents import (
    AdmissibleActions,
    FlatAgent,
    HierarchicalAgent,
    ReActAgent,
    ReflexionAgent,
    SwiftSageAgent,
    SwitchSettings,
)
from lit_rft.callbacks import ScoreTable
from lit_rft.datamodules import EpisodeGroupDataModule, OnlineDataModule, TrajectoryDataModule
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.generation import ChatServerSettings, SamplingSettings
from lit_rft.stages import ActingSettings, MixedPolicyEpisodes, OnlineHighLevelFinetune, PolicySettings, PPOEpisodes
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import make_stage


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeChatServer]:
    with chat_server() as fake:
        yield fake


def acting(fake: FakeChatServer, model: str, levels: list[str] | None = None) -> ActingSettings:
    server = ChatServerSettings(fake.url, model, levels, pause=0.01)
    return ActingSettings(SamplingSettings(8), 2, chat_server=server, pool=PoolSettings(threads=True))


def evaluate(agent: Any, acting: ActingSettings, model: Path, folder: Path, times: int = 1) -> Any:
    stage = make_stage(model, acting=acting, agent=agent)
    data = TrajectoryDataModule(
        str(model), suite=CorridorSuite(step_limit=4), data_dir=str(folder), eval_episodes_per_task=1
    )
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[ScoreTable()],
    )  # fmt: skip
    for _ in range(times):
        trainer.test(stage, datamodule=data, verbose=False)
    return stage.evaluator


@pytest.mark.parametrize(
    ("agent", "answer"),
    [
        (FlatAgent(max_length=900), "echo:go right"),
        (ReActAgent(max_length=900), "echo:Thought: On.|Action: go right"),
        (HierarchicalAgent(), "echo:go right|continue"),
        (ReflexionAgent(), "echo:Action: go right"),
    ],
    ids=["flat", "react", "hierarchical", "reflexion"],
)
def test_a_server_acts_for_every_agent(
    agent: Any, answer: str, fake: FakeChatServer, tiny_model_folder: Path, tmp_path: Path
) -> None:
    before = len(fake.requests(answer))
    evaluator = evaluate(agent, acting(fake, answer), tiny_model_folder, tmp_path)
    assert evaluator.table["mean"]["score"] == 100.0
    costs = json.loads((tmp_path / "costs.json").read_text())
    number = len(fake.requests(answer)) - before
    assert costs["server/requests"] == costs["utterances"] == number >= 6
    assert costs["server/prompt_tokens"] == 7 * number and costs["server/completion_tokens"] == 3 * number
    assert costs["episodes"] == 2 and costs["env_steps"] == 6 and costs["seconds"] > 0
    episode = evaluator.results[0].episode
    assert episode.source["chat_server"] == {"model": answer, "levels": []}


def test_costs_are_those_of_the_last_epoch(fake: FakeChatServer, tiny_model_folder: Path, tmp_path: Path) -> None:
    evaluator = evaluate(FlatAgent(), acting(fake, "echo:go right"), tiny_model_folder, tmp_path, times=2)
    costs = evaluator.costs
    assert costs["server/requests"] == costs["utterances"] == 6 and costs["server/prompt_tokens"] == 7 * 6


def test_each_level_of_a_server_has_its_own_sampling(
    fake: FakeChatServer, tiny_model_folder: Path, tmp_path: Path
) -> None:
    answer = "echo:go right|continue"
    low = SamplingSettings(5, stop_strings=["#"])  # type: ignore[arg-type]  # as a config has them
    settings = dataclasses.replace(acting(fake, answer), level_sampling={"low": low})
    before = len(fake.requests(answer))
    evaluate(HierarchicalAgent(), settings, tiny_model_folder, tmp_path)
    bodies = [request["body"] for request in fake.requests(answer)[before:]]
    assert {body["max_tokens"] for body in bodies} == {5, 8}


def test_sage_on_a_server_beside_a_local_swift(fake: FakeChatServer, tiny_model_folder: Path, tmp_path: Path) -> None:
    answer = "echo:Action 1: go right|Action 2: go right|Action 3: go right"
    agent = SwiftSageAgent(critical=[""], switch=SwitchSettings())  # every first action is critical
    evaluator = evaluate(agent, acting(fake, answer, ["sage"]), tiny_model_folder, tmp_path)
    assert evaluator.table["mean"]["score"] == 100.0
    assert evaluator.costs["server/requests"] == 4 and evaluator.costs["utterances"] == 6  # 2 of Swift's
    roles = [[m["role"] for m in request["body"]["messages"]] for request in fake.requests(answer)]
    assert roles == [["system", "user"]] * 4


def test_reflections_on_a_server_for_a_local_actor(
    fake: FakeChatServer, tiny_model_folder: Path, tmp_path: Path
) -> None:
    agent = ReflexionAgent(ReActAgent(max_length=1500), max_trials=2)
    evaluator = evaluate(agent, acting(fake, "echo:Try the right.", ["reflection"]), tiny_model_folder, tmp_path)
    texts = [result.episode.extra["utterances"].get("reflection") for result in evaluator.results]
    assert sorted(map(str, texts)) == ["None", "None", "['Try the right.']", "['Try the right.']"]
    assert evaluator.costs["server/requests"] == 2


def test_what_is_refused(fake: FakeChatServer, tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chat_server\.levels must be among flat, got sage"):
        make_stage(tiny_model_folder, acting=acting(fake, "echo", ["sage"]), agent=FlatAgent())
    choosing = FlatAgent(admissible=AdmissibleActions(choose=True))
    with pytest.raises(ValueError, match=r"unset acting\.server and acting\.chat_server"):
        make_stage(tiny_model_folder, acting=acting(fake, "echo"), agent=choosing)
    with pytest.raises(AttributeError, match=r"set acting\.chat_server\.levels to null or to all of high, low"):
        evaluate(HierarchicalAgent(), acting(fake, "echo", ["high"]), tiny_model_folder, tmp_path)


def test_a_failing_server_ends_the_run_with_its_error(
    fake: FakeChatServer, tiny_model_folder: Path, tmp_path: Path
) -> None:
    settings = acting(fake, "status:401")
    settings = dataclasses.replace(settings, parallel_episodes=1)
    with pytest.raises(RuntimeError, match="status 401"):
        evaluate(FlatAgent(), settings, tiny_model_folder, tmp_path)


@pytest.mark.parametrize("make", [MixedPolicyEpisodes, OnlineHighLevelFinetune, PPOEpisodes])
def test_a_stage_that_plays_to_learn_refuses_another_model_in_fit(
    make: Any, fake: FakeChatServer, tiny_model_folder: Path, tmp_path: Path
) -> None:
    answer = f"echo:go right|{make.__name__}"
    policy, agent = PolicySettings(str(tiny_model_folder)), FlatAgent(max_length=500)
    stage = make(policy=policy, acting=acting(fake, answer), agent=agent)
    suite = CorridorSuite(step_limit=4)
    kind = EpisodeGroupDataModule if make is MixedPolicyEpisodes else OnlineDataModule
    data = kind(model=str(tiny_model_folder), suite=suite, data_dir=str(tmp_path), eval_episodes_per_task=1)
    trainer = L.Trainer(
        max_steps=1, limit_val_batches=0, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(ValueError, match=rf"{make.__name__} trains on .* set acting\.chat_server to null") as error:
        trainer.fit(stage, datamodule=data)
    assert "\n" not in str(error.value) and not fake.requests(answer)
    assert not list(tmp_path.rglob("*.jsonl"))  # refused before expert episodes are collected
    trainer.limit_test_batches = 1
    trainer.test(stage, datamodule=data, verbose=False)
    assert fake.requests(answer)
