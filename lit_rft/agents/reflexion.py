"""Reflexion (Shinn et al. 2023, arXiv 2303.11366): trials of a task, each after a reflection on the last failure."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lit_rft.agents.base import Ask, Session, Turn, check_positive
from lit_rft.agents.examples import step_texts
from lit_rft.agents.opening import separate_task
from lit_rft.agents.react import LEVEL, ReActAgent, ReActSession, ThoughtAction
from lit_rft.agents.records import replay, texts_of
from lit_rft.envs.base import EpisodeSpec
from lit_rft.episodes import Episode, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript

REFLECTION = "reflection"


@dataclass(frozen=True)
class ReflexionAgent:
    """A ReAct agent that plays a task again after a failure, with the plans that it made after its earlier trials.

    The evaluator plays the trials: `next_trial` gives the specification of each. A trial begins with a reflection on
    the one before, written by the level `reflection`: its transcript and the plans so far, without examples. A solved
    task is not played again. Failure rules are limits of `agent` (`repeat_limit`, `turn_limit`) and the environment's.

    Args:
        agent: plays the trials.
        max_trials: maximum number of trials of a task, > 0.
        memory: number of latest plans that a trial and a reflection read, > 0.
        prompt: system prompt of the reflection.
        max_prompt_tokens: of the reflection's prompt, > 0; the earliest steps of a longer trial are left out.
    """

    agent: ReActAgent = field(default_factory=ReActAgent)
    max_trials: int = 3
    memory: int = 3
    prompt: str = (
        "You have failed a task and will try it again from the start. Do not retell what happened: find the mistake, "
        "and write a short plan for the next trial that names the actions you should take instead."
    )
    max_prompt_tokens: int = 2048

    def __post_init__(self) -> None:
        check_positive(self, "max_trials", "memory", "max_prompt_tokens")

    @property
    def levels(self) -> tuple[str, ...]:
        return (*self.agent.levels, REFLECTION)

    @property
    def max_length(self) -> int:
        return self.agent.max_length

    @property
    def admissible(self) -> Any:
        return self.agent.admissible

    def next_trial(self, spec: EpisodeSpec, trials: Sequence[Episode]) -> EpisodeSpec | None:
        """Return the specification of the next trial; None after a success or the last trial.

        Args:
            spec: of the problem.
            trials: its trials so far, in order.
        """
        if trials and (trials[-1].outcome.success or len(trials) == self.max_trials):
            return None
        plans = [text for trial in trials for text in texts_of(trial, "utterances", REFLECTION)]
        notes = (_retell(trials[-1]), *plans) if trials else ()
        return replace(spec, id=f"{spec.id}/trial{len(trials) + 1}", notes=notes)

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return ReflexionSession(self, chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Make the transcripts of the actions and of the reflection before them."""
        plans = texts_of(episode, "utterances", REFLECTION)
        texts = {LEVEL: self.agent.utterances(episode, chat), **({REFLECTION: plans} if plans else {})}
        return replay(ReflexionSession(self, chat), episode, chat, texts)

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        return [] if level == REFLECTION else self.agent.outcomes(episode, level)

    def update(self, level: str, observation: str) -> str:
        return self.agent.update(level, observation)


def _retell(trial: Episode) -> str:
    """Write a trial: its utterances if they have its actions, else the actions; and the observations."""
    written, lines = iter(texts_of(trial, "utterances", LEVEL)), list[str]()
    for step in trial.steps:
        action = ""
        for text in written:
            lines.append(text.strip())
            answer = ThoughtAction().parse(text)
            action = "" if answer is None else answer.action
            if answer is not None or step.action == "":
                break
        if action != step.action:
            return "\n".join(step_texts(trial, ThoughtAction()))
        lines.append(f"Observation: {step.observation.strip()}")
    return "\n".join(lines)


class ReflexionSession:
    """One trial of a `ReflexionAgent`."""

    def __init__(self, agent: ReflexionAgent, chat: ChatFormat) -> None:
        self.agent, self.chat = agent, chat.at(REFLECTION)
        self._session = ReActSession(agent.agent, chat.at(LEVEL))
        self._notes: list[str] = []  # the last trial, then the plans so far
        self._opening: tuple[str, str] | None = None  # of the episode, while the reflection is written

    @property
    def malformed(self) -> int:
        return self._session.malformed

    def prepare(self, task: str, notes: Sequence[str]) -> None:
        """Take the last trial and the plans."""
        self._session.prepare(task, ())
        self._notes = list(notes)

    def admit(self, actions: Sequence[str]) -> None:
        self._session.admit(actions)

    def start(self, task_description: str, observation: str) -> Turn:
        """Reflect on the last trial, if there is one."""
        if not self._notes:
            return self._session.start(task_description, observation)
        self._opening = task_description, observation
        return Ask(REFLECTION, self._prompt(task_description))

    def receive(self, text: str) -> Turn:
        if self._opening is None:
            return self._session.receive(text)
        (task, observation), self._opening = self._opening, None
        plans = _numbered([*self._plans(), self._plan(text)], self.agent.memory)
        task = separate_task(task, observation)
        return self._session.start(f"{task}\n\nPlans after earlier trials:\n{plans}".lstrip(), observation)

    def observe(self, observation: str) -> Turn:
        return self._session.observe(observation)

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        return []

    def _plan(self, text: str) -> str:
        return " ".join((self.chat.answer(text) or "").split())

    def _plans(self) -> list[str]:
        return [self._plan(text) for text in self._notes[1:]]

    def _prompt(self, task_description: str) -> list[int]:
        lines = self._notes[0].splitlines()
        plans = _numbered(self._plans(), self.agent.memory)
        earlier = f"\n\nPlans so far:\n{plans}" if plans else ""
        while True:
            story = "\n".join(lines)
            user = f"Task: {task_description}\n\n{story}\n\nThe task was not solved.{earlier}\n\nWrite the new plan."
            ids = self.chat.head(self.agent.prompt, user)
            if len(ids) <= self.agent.max_prompt_tokens or not lines:
                return ids
            del lines[: max(1, len(lines) // 8)]


def _numbered(plans: Sequence[str], memory: int) -> str:
    """Write the latest plans, each with the number of its trial."""
    numbered = [f"{number}. {plan}" for number, plan in enumerate(plans, start=1)]
    return "\n".join(numbered[-memory:])
