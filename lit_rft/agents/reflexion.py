"""Reflexion (Shinn et al. 2023, arXiv 2303.11366): trials of a task, each after a reflection on the last failure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_rft.agents.around import AroundAgent, AroundSession
from lit_rft.agents.base import Agent, Ask, Session, Turn, check_positive
from lit_rft.agents.opening import separate_task
from lit_rft.agents.optional import retell
from lit_rft.agents.react import ReActAgent
from lit_rft.agents.records import NOTES, UTTERANCES, texts_of
from lit_rft.envs.base import EpisodeSpec
from lit_rft.episodes import Episode
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript

REFLECTION = "reflection"


@dataclass(frozen=True)
class ReflexionAgent(AroundAgent):
    """An agent that plays a task again after a failure, with the plans that it made after its earlier trials.

    The evaluator plays the trials: `next_trial` gives the specification of each. A trial begins with a reflection on
    the one before, written by the level `reflection`: its transcript and the plans so far, without examples. A solved
    task is not played again. Failure rules are limits of `agent` (ReAct's `repeat_limit`, `turn_limit`) and the
    environment's.

    Args:
        agent: plays the trials, any agent; null for the paper's, `ReActAgent`.
        max_trials: maximum number of trials of a task, > 0.
        memory: number of latest plans that a trial and a reflection read, > 0.
        prompt: system prompt of the reflection.
        max_prompt_tokens: of the reflection's prompt, > 0, and at most three quarters of the agent's context; the
            earliest steps of a longer trial are left out.

    Raises:
        ValueError: For a number out of range, or an agent with a level named `reflection`.
    """

    agent: Agent | None = None
    max_trials: int = 3
    memory: int = 3
    prompt: str = (
        "You have failed a task and will try it again from the start. Do not retell what happened: find the mistake, "
        "and write a short plan for the next trial that names the actions you should take instead."
    )
    max_prompt_tokens: int = 2048

    def __post_init__(self) -> None:
        check_positive(self, "max_trials", "memory", "max_prompt_tokens")
        if REFLECTION in self.inner.levels:
            raise ValueError(f"agent has a level {REFLECTION!r} already, got {type(self.inner).__name__}")

    @property
    def inner(self) -> Agent:
        """The agent that plays the trials."""
        return self.agent if self.agent is not None else ReActAgent()

    @property
    def levels(self) -> tuple[str, ...]:
        return (*self.inner.levels, REFLECTION)

    def next_trial(self, spec: EpisodeSpec, trials: Sequence[Episode]) -> EpisodeSpec | None:
        """Return the specification of the next trial; None after a success or the last trial.

        Args:
            spec: of the problem.
            trials: its trials so far, in order.
        """
        if trials and (trials[-1].outcome.success or len(trials) == self.max_trials):
            return None
        plans = [text for trial in trials for text in texts_of(trial, UTTERANCES, REFLECTION)]
        notes = (retell(self.inner, trials[-1]), *plans) if trials else ()
        return replace(spec, id=f"{spec.id}/trial{len(trials) + 1}", notes=notes)

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return ReflexionSession(self, episode_id, chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Make the transcripts of the agent's levels, and of the reflection before them."""
        notes, written = texts_of(episode, NOTES), texts_of(episode, UTTERANCES, REFLECTION)
        if not (episode.steps and notes and written):
            return self.inner.transcripts(episode, chat)
        session = ReflexionSession(self, episode.id, chat)
        session.prepare(episode.task, notes)
        reflection = Transcript(REFLECTION, chat.end_of_turn_id, episode.id)
        reflection.append_prompt(session.prompt(episode.task_description))
        reflection.append_utterance(chat.utterance(written[0]))
        task = session.task_with_plans(episode.task_description, episode.initial_observation, written[0])
        return [*self.inner.transcripts(replace(episode, task_description=task), chat), reflection]

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        return [] if level == REFLECTION else super().outcomes(episode, level)


class ReflexionSession(AroundSession):
    """One trial of a `ReflexionAgent`."""

    def __init__(self, agent: ReflexionAgent, episode_id: str, chat: ChatFormat) -> None:
        levels = agent.inner.levels
        super().__init__(agent.inner.session(episode_id, chat.at(levels[0]) if len(levels) == 1 else chat))
        self.agent, self.chat = agent, chat.at(REFLECTION)
        self._notes: list[str] = []  # the last trial, then the plans so far
        self._opening: tuple[str, str] | None = None  # of the episode, while the reflection is written

    def prepare(self, task: str, notes: Sequence[str]) -> None:
        """Take the last trial and the plans."""
        super().prepare(task, ())
        self._notes = list(notes)

    def start(self, task_description: str, observation: str) -> Turn:
        """Reflect on the last trial, if there is one."""
        if not self._notes:
            return self.inner.start(task_description, observation)
        self._opening = task_description, observation
        return Ask(REFLECTION, self.prompt(task_description))

    def receive(self, text: str) -> Turn:
        if self._opening is None:
            return super().receive(text)
        (task, observation), self._opening = self._opening, None
        return self.inner.start(self.task_with_plans(task, observation, text), observation)

    def task_with_plans(self, task_description: str, observation: str, text: str) -> str:
        """Append the latest plans to the task.

        Args:
            task_description: the task in words.
            observation: the first one.
            text: utterance of the reflection.
        """
        plans = _numbered([*self._plans(), self._plan(text)], self.agent.memory)
        task = separate_task(task_description, observation)
        return f"{task}\n\nPlans after earlier trials:\n{plans}".lstrip()

    def _plan(self, text: str) -> str:
        return " ".join((self.chat.answer(text) or "").split())

    def _plans(self) -> list[str]:
        return [self._plan(text) for text in self._notes[1:]]

    def prompt(self, task_description: str) -> list[int]:
        """Return the ids of the reflection's prompt."""
        lines = self._notes[0].splitlines()
        plans = _numbered(self._plans(), self.agent.memory)
        earlier = f"\n\nPlans so far:\n{plans}" if plans else ""
        limit = min(self.agent.max_prompt_tokens, 3 * self.agent.max_length // 4)  # the rest is for the answer
        while True:
            story = "\n".join(lines)
            user = f"Task: {task_description}\n\n{story}\n\nThe task was not solved.{earlier}\n\nWrite the new plan."
            ids = self.chat.head(self.agent.prompt, user)
            if len(ids) <= limit or not lines:
                return ids
            del lines[: max(1, len(lines) // 8)]


def _numbered(plans: Sequence[str], memory: int) -> str:
    """Write the latest plans, each with the number of its trial."""
    numbered = [f"{number}. {plan}" for number, plan in enumerate(plans, start=1)]
    return "\n".join(numbered[-memory:])
