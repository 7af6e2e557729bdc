"""What was played, recorded and read back gives the tokens that were played; how an episode ended is what it says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from plugins.thinking_agent import ThinkingAgent

from lit_rft.agents import EpisodePlayer, FlatAgent, HierarchicalAgent, HierarchyPrompts, PlayedEpisode
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.episodes import read_episodes, write_episodes
from lit_rft.generation import Completion, SamplingSettings
from lit_rft.testing.corridor import LENGTH, CorridorSuite
from lit_rft.testing.tiny import make_tokenizer
from lit_rft.transcripts import ChatFormat

AGENTS: list[Any] = [HierarchicalAgent(HierarchyPrompts("Plan.", "Act."), 2000, 4), FlatAgent("Act."), ThinkingAgent()]


class Scripted:
    """A policy that always walks in one direction and gives up a subgoal after every second action."""

    def __init__(self, chat: ChatFormat, direction: str) -> None:
        self.chat, self.direction = chat, direction
        self.sampling = SamplingSettings(32)
        self.tokens_sampled = self.tokens_read = 0
        self.names: dict[int, str] = {}
        self.turns: dict[int, int] = {}

    def open(self, name: str) -> int:
        slot = len(self.names)
        self.names[slot], self.turns[slot] = name, 0
        return slot

    def close(self, slot: int) -> None: ...
    def forget(self, slot: int) -> None: ...

    def sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Completion]:
        return {slot: self._answer(slot) for slot in prompts}

    def _answer(self, slot: int) -> Completion:
        self.turns[slot] += 1
        turn, level = self.turns[slot], self.names[slot].rpartition("/")[2]
        flag = "done" if turn % 2 == 0 else "continue"
        action = f"go {self.direction}"
        texts = {"high": f"go to room {turn}", "low": f"{action}\n{flag}", "flat": action}
        texts["thinking"] = f"{turn}?\n{action}"
        ids = self.chat.utterance(texts[level])
        return Completion(ids, [-0.5] * len(ids), True)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer())


def play(chat: ChatFormat, agent: Any, direction: str) -> list[PlayedEpisode]:
    suite = CorridorSuite()
    generator: Any = Scripted(chat, direction)
    with EnvPool(suite.make_env, 2, PoolSettings(threads=True)) as pool:
        player = EpisodePlayer(agent, pool, chat, generator)
        player.submit(suite.episodes("train")[:3])
        return list(player.run())


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: type(agent).__name__)
def test_recorded_episodes_have_the_played_tokens(agent: Any, direction: str, chat: ChatFormat, tmp_path: Path) -> None:
    played = {one.episode.id: one for one in play(chat, agent, direction)}
    write_episodes(tmp_path / "played.jsonl", [one.episode for one in played.values()])
    assert len(played) == 3
    for episode in read_episodes(tmp_path / "played.jsonl"):
        recorded, original = agent.transcripts(episode, chat), played[episode.id].transcripts
        assert [transcript.level for transcript in original] == list(agent.levels)
        assert len({step.observation for step in episode.steps}) > 1 or direction == "left"
        for again, transcript in zip(recorded, original, strict=True):
            assert again.level == transcript.level and again.num_decisions == transcript.num_decisions > 1
            assert again.input_ids == transcript.input_ids
            assert again.utterance_starts == transcript.utterance_starts


def test_the_goal_terminates_and_the_step_limit_truncates(chat: ChatFormat) -> None:
    for one in play(chat, AGENTS[0], "right"):
        outcome = one.episode.outcome
        assert len(one.episode.steps) == LENGTH
        assert (outcome.reason, outcome.success, outcome.score) == ("goal", True, 1.0)
        assert outcome.terminated and not outcome.truncated
    for one in play(chat, AGENTS[0], "left"):
        outcome = one.episode.outcome
        assert len(one.episode.steps) == one.episode.step_limit == 6
        assert (outcome.reason, outcome.success, outcome.score) == ("step_limit", False, 0.0)
        assert outcome.truncated and not outcome.terminated
