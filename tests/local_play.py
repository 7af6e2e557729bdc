"""Episodes of the corridor in this process, by a policy that writes given texts; and what their transcripts must be."""

import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
from families import FAMILIES, family_tokenizer

from lit_rft.agents import EpisodePlayer, PlayedEpisode
from lit_rft.envs import EpisodeEnv, EpisodeSpec
from lit_rft.episodes import Episode
from lit_rft.generation import Completion, SamplingSettings
from lit_rft.testing.corridor import CorridorEnv
from lit_rft.transcripts import ChatFormat


def chat_of(family: str) -> ChatFormat:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chat = ChatFormat(family_tokenizer(FAMILIES[family]))
        chat.turn("x")  # warns once
    return chat


class LocalPool:
    """The corridor in this process, one step of every episode at a time."""

    def __init__(self, env: type[gym.Env[str, str]] = CorridorEnv) -> None:
        self.env = env
        self.envs: dict[int, EpisodeEnv] = {}
        self.events: list[Any] = []

    @property
    def outstanding(self) -> int:
        return len(self.envs)

    def submit(self, job: EpisodeSpec) -> None:
        worker = len(self.envs)
        self.envs[worker] = EpisodeEnv(self.env())
        self.events.append(SimpleNamespace(kind="reset", worker=worker, job=job, payload=self.envs[worker].reset(job)))

    def step(self, worker: int, action: str) -> None:
        payload = self.envs[worker].step(action)
        self.events.append(SimpleNamespace(kind="step", worker=worker, job=None, payload=payload))

    def wait(self, timeout: float | None = None) -> list[Any]:
        events, self.events = self.events, []
        return events

    def finish(self, worker: int) -> None:
        del self.envs[worker]


class Writer:
    """A policy that writes given texts in turn, and keeps what it has read."""

    def __init__(self, chat: ChatFormat, texts: Mapping[str, Sequence[str]], end: bool = True) -> None:
        self.chat, self.texts, self.end = chat, {level: iter(lines) for level, lines in texts.items()}, end
        self.sampling = SamplingSettings(32)
        self.tokens_sampled = self.tokens_read = 0
        self.levels: list[str] = []
        self.contexts: list[list[int]] = []
        self.seen: list[tuple[list[int], list[int]]] = []  # context and utterance of each turn

    def open(self, name: str) -> int:
        self.levels.append(name.rpartition("/")[2])
        self.contexts.append([])
        return len(self.levels) - 1

    def close(self, slot: int) -> None: ...

    def forget(self, slot: int) -> None:
        self.contexts[slot] = []

    def sample(self, prompts: Mapping[int, Sequence[int]], choices: Any = None) -> dict[int, Completion]:
        return {slot: self._write(slot, list(ids)) for slot, ids in prompts.items()}

    def _write(self, slot: int, new: list[int]) -> Completion:
        context = self.contexts[slot] = [*self.contexts[slot], *new]
        ids = self.chat.utterance(next(self.texts[self.levels[slot]]))
        ids = ids if self.end else ids[:-1]
        self.seen.append((context, ids))
        self.contexts[slot] = [*context, *ids]
        return Completion(ids, [-float(len(self.seen))] * len(ids), True)


def play(
    agent: Any, chat: ChatFormat, writer: Any, env: type[gym.Env[str, str]] = CorridorEnv, step_limit: int = 6
) -> PlayedEpisode:
    player = EpisodePlayer(agent, LocalPool(env), chat, writer)  # type: ignore[arg-type]
    player.submit([EpisodeSpec("e", "walk", "train", step_limit=step_limit)])
    (played,) = player.run()
    return played


def answers(chat: ChatFormat, texts: Sequence[str]) -> list[str]:
    """Answers with thoughts before them, where the model thinks."""
    if chat.thoughts.opening:
        return [chat.answer_text(text, f"Thought {n}.") for n, text in enumerate(texts)]
    return [f"<think>\nThought {n}.\n</think>\n\n{text}" for n, text in enumerate(texts)]


def assert_what_was_read(played: PlayedEpisode, writer: Writer) -> None:
    """Every decision is the utterance that was written, and the ids before it are those that the policy had read."""
    decisions = [
        (transcript.input_ids[: transcript.utterance_starts[k]], transcript.utterance_ids(k), log_probs[k])
        for transcript, log_probs in zip(played.transcripts, played.log_probs, strict=True)
        for k in range(transcript.num_decisions)
    ]
    expected = [(context, ids, [-float(n)] * len(ids)) for n, (context, ids) in enumerate(writer.seen, start=1)]
    assert sorted(decisions, key=lambda one: one[2][0], reverse=True) == expected


def assert_recorded(agent: Any, chat: ChatFormat, played: PlayedEpisode) -> None:
    """The record gives the same transcripts."""
    again = agent.transcripts(Episode.from_dict(played.episode.to_dict()), chat)
    for transcript, original in zip(again, played.transcripts, strict=True):
        original = original.without_last_prompt()
        assert transcript == original
