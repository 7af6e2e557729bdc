"""A player of many concurrent episodes: sessions on one side, simulators on the other."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_rft.agents.base import Act, Agent, Ask, Session, Stop, Turn
from lit_rft.agents.contexts import make_context
from lit_rft.agents.conversation import ContextFullError, Conversation
from lit_rft.agents.optional import admissible_actions, admit, keeps_thoughts, keeps_turns, notice, prepare
from lit_rft.agents.records import NOTES, TOKENS, UTTERANCES
from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_events import PoolEvent
from lit_rft.episodes import Episode, Outcome, Step
from lit_rft.episodes.record import ADMISSIBLE
from lit_rft.generation import Conversations
from lit_rft.transcripts import ChatFormat, LevelFormats, MessageFormat, Transcript

_PATIENCE = 0.1  # share of a round's time to wait for episodes that are not ready


@dataclass
class PlayedEpisode:
    """An episode with all tokens that the model read and wrote.

    `log_probs[i][k]` are those of decision k of `transcripts[i]`, as sampled. A level has one transcript, or, without
    its earlier thoughts, one per decision.
    """

    episode: Episode
    transcripts: list[Transcript] = field(default_factory=list)
    log_probs: list[list[list[float]]] = field(default_factory=list)


@dataclass
class _Live:
    """One episode in progress."""

    job: EpisodeSpec
    session: Session
    conversations: dict[str, Conversation]  # by level
    info: dict[str, Any]
    observation: str
    act: Act = field(default_factory=lambda: Act(""))
    utterances: dict[str, list[str]] = field(default_factory=dict)  # level -> texts
    admissible: list[list[str]] = field(default_factory=list)  # with each observation
    waiting: Conversation | None = None  # waits for its next utterance
    steps: list[Step] = field(default_factory=list)


class EpisodePlayer:
    """Plays episodes of an agent on a pool of environments.

    Each round samples the next utterances of all waiting episodes in one forward pass, while the simulators work on the
    others. A round starts when all episodes in progress are ready, or when half of them are and a tenth of the last
    round's time has passed: full rounds are faster, but none waits long for the slowest.

    Args:
        agent: makes a session for each episode.
        pool: of environments.
        chat: chat format of the model's tokenizer, or of each level; not required for an agent without levels.
        generators: samples the utterances of all levels, or a generator per level (for example with other weights).
            Each needs one slot per level and worker of the pool.
        source: `source` of the records: the acting policy.
    """

    def __init__(
        self,
        agent: Agent,
        pool: EnvPool,
        chat: ChatFormat | MessageFormat | LevelFormats | None = None,
        generators: Conversations | Mapping[str, Conversations] | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        self.agent, self.pool = agent, pool
        self._chat: Any = chat
        shared = not isinstance(generators, Mapping)
        self._generators: Any = dict.fromkeys(agent.levels, generators) if shared else generators
        self.source = source or {"kind": "policy"}
        self._live: dict[int, _Live] = {}
        self._deciding: set[int] = set()  # workers with an episode that waits for an utterance
        self._round_seconds = 0.0  # of sampling, in the last round

    def submit(self, jobs: Sequence[EpisodeSpec]) -> None:
        """Queue episodes."""
        for job in jobs:
            self.pool.submit(job)

    def run(self, max_unfinished: int = 0) -> Iterator[PlayedEpisode]:
        """Play until at most `max_unfinished` of the submitted episodes are left; yield each at its end.

        An episode whose environment failed for good has the outcome reason `env_error`.
        """
        while self.pool.outstanding > max_unfinished:
            yield from self._handle_events(max_unfinished)
            yield from self._decide()

    def _handle_events(self, max_unfinished: int = 0) -> Iterator[PlayedEpisode]:
        """Process events of the simulators until enough episodes wait for an utterance."""
        begin: float | None = None  # latest start of the round
        while self.pool.outstanding > max_unfinished:
            ready, live = len(self._deciding), len(self._live)
            timeout = None
            if ready and 2 * ready >= live:
                now = time.monotonic()
                begin = begin or now + _PATIENCE * self._round_seconds
                timeout = max(0.0, begin - now) if ready < live else 0
            events = self.pool.wait(timeout=timeout)
            for event in events:
                played = self._handle(event)
                if played is not None:
                    yield played
            if not events:
                return

    def _handle(self, event: PoolEvent) -> PlayedEpisode | None:
        if event.kind == "reset":
            observation, info = event.payload
            session = self.agent.session(event.job.id, self._chat)
            live = self._live[event.worker] = _Live(event.job, session, self._open(event.job.id), info, observation)
            prepare(session, event.job.task, event.job.notes)
            self._admit(live, info)
            return self._continue(event.worker, live, session.start(info["task_description"], observation))
        if event.kind == "step":
            return self._step(event.worker, event.payload)
        # the environment has failed: "lost" episodes restart in another worker, "error" ones are over
        live_or_none = self._live.pop(event.worker, None)
        self._deciding.discard(event.worker)
        if live_or_none is not None:
            _close(live_or_none)
        return self._env_error(event, live_or_none) if event.kind == "error" else None

    def _open(self, episode_id: str) -> dict[str, Conversation]:
        conversations = {}
        for level in self.agent.levels:
            chat = self._chat.at(level)
            transcript = Transcript(level, chat.end_of_turn_id, episode_id)
            context = make_context(transcript, chat, keeps_thoughts(self.agent), keeps_turns(self.agent))
            conversations[level] = Conversation(self._generators[level], context, self.agent.max_length, episode_id)
        return conversations

    def _step(self, worker: int, payload: tuple[str, float, bool, bool, dict[str, Any]]) -> PlayedEpisode | None:
        observation, reward, terminated, truncated, info = payload
        live = self._live[worker]
        valid = info["valid"] and live.act.valid
        live.steps.append(Step(live.act.text, observation, reward, info["score"], valid, info["achieved"]))
        live.info["metrics"] = info["metrics"]  # the last values of the episode so far
        self._admit(live, info)
        if terminated or truncated:
            return self._end(worker, live, terminated, info["reason"], info)
        notice(live.session, live.steps[-1])
        return self._continue(worker, live, live.session.observe(observation))

    def _admit(self, live: _Live, info: dict[str, Any]) -> None:
        """Give the session the admissible actions, if its agent wants them."""
        settings = admissible_actions(self.agent)
        if settings is not None:
            live.admissible.append(settings.select(info))
            admit(live.session, live.admissible[-1])

    def _continue(self, worker: int, live: _Live, turn: Turn) -> PlayedEpisode | None:
        """Process the agent's turn: queue an utterance, act, or end the episode."""
        if isinstance(turn, Ask):
            if turn.level not in live.conversations:
                name, levels = type(live.session).__name__, ", ".join(live.conversations)
                raise ValueError(f"{name} asks at level {turn.level!r}, expected one of its agent's: {levels}")
            live.waiting = live.conversations[turn.level]
            try:
                live.waiting.read(turn.ids, turn.choices)
            except ContextFullError:
                return self._end(worker, live, False, "context_full")
            self._deciding.add(worker)
            return None
        if isinstance(turn, Stop):
            return self._end(worker, live, False, turn.reason)
        if not isinstance(turn, Act):
            name = type(live.session).__name__
            raise TypeError(f"start, receive and observe of {name} must return Ask, Act or Stop, got {turn!r}")
        live.act = turn
        self._deciding.discard(worker)
        self.pool.step(worker, turn.text)
        return None

    def _decide(self) -> Iterator[PlayedEpisode]:
        """Sample one utterance for each waiting episode; those with an action continue in their simulators."""
        groups: dict[int, list[int]] = {}  # workers by their generator
        for worker in sorted(self._deciding):
            groups.setdefault(id(self._waiting_conversation(worker).generator), []).append(worker)
        self._round_seconds = 0.0
        for workers in groups.values():
            yield from self._decide_for(workers)

    def _decide_for(self, workers: list[int]) -> Iterator[PlayedEpisode]:
        waiting = {worker: self._waiting_conversation(worker) for worker in workers}
        started = time.monotonic()
        prompts = {c.slot: c.unread() for c in waiting.values()}
        choices = {c.slot: c.choices for c in waiting.values() if c.choices is not None}
        generator = waiting[workers[0]].generator
        completions = generator.sample(prompts, choices) if choices else generator.sample(prompts)
        self._round_seconds += time.monotonic() - started
        for worker, conversation in waiting.items():
            live, completion = self._live[worker], completions[conversation.slot]
            conversation.write(completion)
            text = self._chat.at(conversation.level).text(completion.ids)
            live.utterances.setdefault(conversation.level, []).append(text)
            played = self._continue(worker, live, live.session.receive(text))
            if played is not None:
                yield played

    def _waiting_conversation(self, worker: int) -> Conversation:
        conversation = self._live[worker].waiting
        assert conversation is not None
        return conversation

    def _end(
        self, worker: int, live: _Live, terminated: bool, reason: str, info: dict[str, Any] | None = None
    ) -> PlayedEpisode:
        played = self._played(live, terminated, reason)
        if info is not None:  # the environment ended the episode
            played.episode.outcome.success = info["success"]
        _close(live)
        del self._live[worker]
        self._deciding.discard(worker)
        self.pool.finish(worker)
        return played

    def _env_error(self, event: PoolEvent, live: _Live | None) -> PlayedEpisode:
        if live is None:  # without a first observation
            info = {"env": "unknown", "env_version": "", "task_description": ""}
            episode = self._record(event.job, info, "", [], "env_error")
        else:
            episode = self._record(live.job, live.info, live.observation, live.steps, "env_error")
        episode.extra["error"] = str(event.payload)
        return PlayedEpisode(episode)

    def _played(self, live: _Live, terminated: bool, reason: str) -> PlayedEpisode:
        episode = self._record(live.job, live.info, live.observation, live.steps, reason, terminated)
        episode.subgoals = live.session.subgoals(len(live.steps))
        episode.source["malformed"] = live.session.malformed
        if live.info.get("metrics"):
            episode.extra["metrics"] = live.info["metrics"]
        if any(live.admissible):
            episode.extra[ADMISSIBLE] = live.admissible
        conversations = live.conversations.values()
        if live.utterances:
            episode.extra[UTTERANCES] = live.utterances
            episode.extra[TOKENS] = _count_tokens(conversations)
        if live.job.notes:
            episode.extra[NOTES] = list(live.job.notes)
        transcripts = [transcript for c in conversations for transcript in c.transcripts]
        return PlayedEpisode(episode, transcripts, [values for c in conversations for values in c.log_probs])

    def _record(
        self,
        job: EpisodeSpec,
        info: dict[str, Any],
        observation: str,
        steps: list[Step],
        reason: str,
        terminated: bool = False,
    ) -> Episode:
        score = steps[-1].score if steps else info.get("score", 0.0)
        return Episode(
            id=job.id,
            env=info.get("env", "unknown"),
            env_version=info.get("env_version", ""),
            task=job.task,
            split=job.split,
            source=dict(self.source),
            task_description=info["task_description"],
            initial_observation=observation,
            steps=steps,
            subgoals=[],
            outcome=Outcome(score, False, terminated, not terminated, reason),
            step_limit=job.step_limit,
            meta=dict(job.meta),
        )


def _count_tokens(conversations: Collection[Conversation]) -> dict[str, int]:
    return {
        "read": sum(conversation.tokens_read for conversation in conversations),
        "sampled": sum(conversation.tokens_sampled for conversation in conversations),
    }


def _close(live: _Live) -> None:
    """Free the generators' slots."""
    for conversation in live.conversations.values():
        conversation.close()
