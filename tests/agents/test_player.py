"""Many episodes at once: every job ends once, and what was sampled is what a plain pass would say."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from local_play import Writer, play

from lit_rft.agents import Ask, EpisodePlayer, FlatAgent, HierarchicalAgent, HierarchyPrompts, PlayedEpisode, ReActAgent
from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_events import PoolEvent
from lit_rft.generation import ConversationGenerator, SamplingSettings
from lit_rft.testing.corridor import CorridorEnv, CorridorSuite
from lit_rft.testing.tiny import make_model, make_tokenizer
from lit_rft.transcripts import ChatFormat


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer())


def _jobs(suite: CorridorSuite) -> list[EpisodeSpec]:
    return suite.episodes("train")


def _play(
    model: Any, chat: ChatFormat, suite: CorridorSuite, *, hierarchy: bool = True, workers: int = 3
) -> Iterator[PlayedEpisode]:
    agent = HierarchicalAgent(HierarchyPrompts("Plan.", "Act."), 700, 3) if hierarchy else FlatAgent("Act.", 700)
    generator = ConversationGenerator(model, chat.end_of_turn_id, SamplingSettings(6, 1.0), num_slots=2 * workers)
    with EnvPool(suite.make_env, workers) as pool:
        player = EpisodePlayer(agent, pool, chat, generator)
        player.submit(_jobs(suite))
        yield from player.run()
    for slot in range(2 * workers):  # every slot was given back
        generator.open(f"free {slot}")


@pytest.mark.parametrize("hierarchy", [True, False])
def test_sampled_log_probs_equal_a_plain_pass(model: Any, chat: ChatFormat, hierarchy: bool) -> None:
    played = list(_play(model, chat, CorridorSuite(), hierarchy=hierarchy))
    assert sorted(p.episode.id for p in played) == sorted(job.id for job in _jobs(CorridorSuite()))
    for one in played:
        one.episode.validate()
        assert one.episode.outcome.reason == "step_limit" and len(one.episode.steps) == 6
        for transcript, log_probs in zip(one.transcripts, one.log_probs, strict=True):
            assert len(log_probs) == transcript.num_decisions > 0
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([transcript.input_ids])).logits[0].float()
            plain = logits.log_softmax(-1)
            for k, start in enumerate(transcript.utterance_starts):
                ids = transcript.utterance_ids(k)
                expected = [plain[start - 1 + i, token].item() for i, token in enumerate(ids)]
                assert log_probs[k] == pytest.approx(expected, abs=1e-4)


def test_episodes_do_not_depend_on_how_many_are_played_at_once(model: Any, chat: ChatFormat) -> None:
    one, many = (
        {p.episode.id: [s.action for s in p.episode.steps] for p in _play(model, chat, CorridorSuite(), workers=n)}
        for n in (1, 4)
    )
    assert one == many


def test_an_environment_that_dies_in_mid_episode_is_played_again(model: Any, chat: ChatFormat, tmp_path: Path) -> None:
    suite = CorridorSuite(die_once=str(tmp_path / "died"))
    played = list(_play(model, chat, suite, workers=2))
    assert sorted(p.episode.id for p in played) == sorted(job.id for job in _jobs(suite))
    assert all(p.episode.outcome.reason == "step_limit" and len(p.episode.steps) == 6 for p in played)
    assert (tmp_path / "died").exists()


def test_an_environment_that_always_dies_is_an_env_error(model: Any, chat: ChatFormat) -> None:
    played = list(_play(model, chat, CorridorSuite(die_always=True), workers=2))
    assert len(played) == len(_jobs(CorridorSuite()))
    assert all(p.episode.outcome.reason == "env_error" and not p.transcripts for p in played)
    for one in played:
        one.episode.validate()
        assert one.episode.initial_observation and one.episode.extra["error"]


def test_a_context_without_room_for_an_utterance_ends_the_episode(model: Any, chat: ChatFormat) -> None:
    suite = CorridorSuite()
    generator = ConversationGenerator(model, chat.end_of_turn_id, SamplingSettings(6), num_slots=2)
    with EnvPool(suite.make_env, 2) as pool:
        player = EpisodePlayer(FlatAgent("Act.", max_length=10), pool, chat, generator)
        player.submit(_jobs(suite)[:3])
        played = list(player.run())
    assert sorted(one.episode.id for one in played) == sorted(job.id for job in _jobs(suite)[:3])
    for one in played:
        assert one.episode.outcome.reason == "context_full" and not one.episode.steps
        assert not one.episode.outcome.success and not one.episode.outcome.terminated


def test_the_others_play_on_while_one_simulator_is_slow(model: Any, chat: ChatFormat, tmp_path: Path) -> None:
    wait = tmp_path / "wait"
    total, played = len(_jobs(CorridorSuite())), 0
    for _ in _play(model, chat, CorridorSuite(wait_once=str(wait))):
        played += 1
        if played == total - 1:  # all but the one that waits have ended
            wait.unlink()
    assert played == total


class ScriptedPool:
    """Reports the next steps of given workers at each call, a second later, and keeps how long it was asked to wait."""

    def __init__(self, clock: list[float], *workers: list[int]) -> None:
        self.clock, self.workers, self.timeouts = clock, list(workers), []  # type: list[float], list[list[int]], list[float | None]
        self.jobs: list[EpisodeSpec] = []

    @property
    def outstanding(self) -> int:
        return len(self.jobs) if self.workers else 0

    def submit(self, job: EpisodeSpec) -> None:
        self.jobs.append(job)

    def step(self, worker: int, action: str) -> None: ...

    def wait(self, timeout: float | None = None) -> list[PoolEvent]:
        info: dict[str, Any] = {"score": 0.0, "valid": True, "achieved": [], "reason": None, "metrics": {}}
        first = not self.timeouts
        self.timeouts.append(timeout)
        self.clock[0] += 1
        begun, later = ("", {**info, "task_description": ""}), ("", 0.0, False, False, info)
        payload, kind = (begun, "reset") if first else (later, "step")
        return [PoolEvent(kind, worker, self.jobs[worker], payload) for worker in self.workers.pop(0)]


@pytest.mark.parametrize("seconds", [0.0, 50.0])
def test_a_round_waits_a_little_for_the_others(
    chat: ChatFormat, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("lit_rft.agents.player.time", SimpleNamespace(monotonic=lambda: clock[0]))

    class TakesSeconds(Writer):
        def sample(self, prompts: Any, choices: Any = None) -> Any:
            clock[0] += seconds
            return super().sample(prompts)

    pool: Any = ScriptedPool(clock, [0, 1, 2, 3], [], [0], [1], [2], [], [3], [0, 1, 2], [])
    player = EpisodePlayer(FlatAgent(), pool, chat, TakesSeconds(chat, {"flat": ["wait"] * 12}))  # type: ignore[arg-type]
    player.submit(_jobs(CorridorSuite())[:4])
    assert not list(player.run())
    assert pool.timeouts[:2] == [None, 0]  # all have begun, and are there: a round of sampling
    assert pool.timeouts[2:5] == [None, None, 0.1 * seconds]  # fewer than half, and half of them
    assert pool.timeouts[5] == max(0.0, 0.1 * seconds - 1)  # with the third no longer than from the half on
    assert pool.timeouts[6:] == [None, None, 0]  # the fourth was late; then all are there


def test_max_unfinished_hands_back_early(model: Any, chat: ChatFormat) -> None:
    agent = FlatAgent()
    generator = ConversationGenerator(model, chat.end_of_turn_id, SamplingSettings(4), num_slots=2)
    with EnvPool(CorridorSuite().make_env, 2) as pool:
        player = EpisodePlayer(agent, pool, chat, generator)
        player.submit(_jobs(CorridorSuite()))
        early = list(player.run(max_unfinished=5))
        assert len(early) >= 3 and pool.outstanding <= 5
        assert len(early) + len(list(player.run())) == 8


class HalfDone(CorridorEnv):
    """Has a score before any action."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "score": 0.5}


def test_a_record_says_where_it_was_played_and_its_score_without_a_step(chat: ChatFormat) -> None:
    writer = Writer(chat, {"flat": ["Thought: On."]})
    episode = play(ReActAgent(turn_limit=1), chat, writer, HalfDone).episode
    assert (episode.env, episode.env_version, episode.steps) == ("corridor", "1", [])
    assert (episode.outcome.reason, episode.outcome.score) == ("turn_limit", 0.5)


class EndsAtNonsense(CorridorEnv):
    """Ends with what was reached so far at an action that it does not understand."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or not info["valid"], truncated, {**info, "reason": "failed"}


@pytest.mark.parametrize("env", [CorridorEnv, EndsAtNonsense])
def test_partial_credit_is_kept_after_a_wrong_format_and_is_no_success(env: Any, chat: ChatFormat) -> None:
    agent = ReActAgent(max_thoughts=0)
    writer = Writer(chat, {"flat": ["Action: go right", "Action: go right", *["What now?"] * 4]})
    episode = play(agent, chat, writer, env).episode
    assert [step.valid for step in episode.steps] == [True, True, False] + [False] * 3 * (env is CorridorEnv)
    assert episode.outcome.score == episode.steps[-1].score == pytest.approx(2 / 3)
    assert not episode.outcome.success
    assert episode.outcome.terminated is (env is EndsAtNonsense)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (None, r"start, receive and observe of WrongSession must return Ask, Act or Stop, got None"),
        (Ask("hgih", [5]), "WrongSession asks at level 'hgih', expected one of its agent's: flat"),
    ],
)
def test_a_turn_that_is_none_is_named(model: Any, chat: ChatFormat, turn: Any, message: str) -> None:
    class WrongSession:
        def start(self, task_description: str, observation: str) -> Any:
            return turn

    class WrongAgent(FlatAgent):
        def session(self, episode_id: str, chat: ChatFormat) -> Any:
            return WrongSession()

    suite = CorridorSuite()
    generator = ConversationGenerator(model, chat.end_of_turn_id, SamplingSettings(6), num_slots=2)
    with EnvPool(suite.make_env, 1) as pool:
        player = EpisodePlayer(WrongAgent("Act."), pool, chat, generator)
        player.submit(_jobs(suite)[:1])
        with pytest.raises((TypeError, ValueError), match=message):
            list(player.run())
