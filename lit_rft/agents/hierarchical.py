"""The hierarchical agent (GLIDER): the high level writes subgoals, the low level acts until its subgoal is done.

The same session plays episodes and renders stored ones: a policy is trained on exactly the tokens of its play.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lit_rft.agents.admissible import AdmissibleActions
from lit_rft.agents.answers import read_answer, system_text, write_answer
from lit_rft.agents.base import Act, Ask, Session, check_positive
from lit_rft.agents.formats import AnswerFormat, FirstLine
from lit_rft.agents.opening import opening_text, separate_task
from lit_rft.agents.records import recorded_thoughts, recorded_utterances, replay
from lit_rft.agents.subgoal_outcomes import high_level_outcomes, low_level_outcomes
from lit_rft.episodes import Episode, Subgoal
from lit_rft.episodes.subgoals import CONTINUE, DONE
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript


@dataclass(frozen=True)
class HierarchyPrompts:
    """System prompts (GLIDER's hierarchy prompts, which name the level) and the inputs of the low level.

    Leading and trailing whitespace of prompts is removed.

    Args:
        high: system prompt of the high level, which writes subgoals.
        low: system prompt of the low level, which acts and reports whether its subgoal is done.
        low_level_sees_task: if False, the low level reads subgoals and observations only: pi(a | g, o) exactly.
    """

    high: str = "You plan. Read the task and what was observed, and answer with the next subgoal."
    low: str = (
        f"You act. Reach the current subgoal: answer with one action, then {DONE!r} on a new line if it completes "
        f"the subgoal, else {CONTINUE!r}."
    )
    low_level_sees_task: bool = True

    def high_opening(self, task_description: str, observation: str) -> str:
        return opening_text(task_description, observation)

    def high_update(self, observation: str) -> str:
        """Return the high level's prompt at the end of a subgoal: its last observation (o_{t+c})."""
        return observation.strip()

    def low_opening(self, task_description: str, observation: str, goal: str) -> str:
        opening = opening_text(task_description, observation) if self.low_level_sees_task else observation
        return f"{opening}\n\nSubgoal: {goal}".strip()

    def low_update(self, observation: str, goal: str | None = None) -> str:
        """Return the low level's prompt after its action; with `goal` if a new subgoal starts."""
        return (observation if goal is None else f"{observation}\n\nSubgoal: {goal}").strip()


@dataclass(frozen=True)
class LowLevelAnswer:
    """The parts of a low-level utterance: action, completion flag, whether its form is malformed, and whether valid."""

    action: str
    subgoal_done: bool
    malformed: bool
    valid: bool = True


def write_low_level_answer(action: str, subgoal_done: bool, answer_format: AnswerFormat | None = None) -> str:
    """Write an action in a format (default: as one line), and a flag; `parse_low_level_answer` is the inverse."""
    return f"{(answer_format or FirstLine()).render(action)}{_flag_line(subgoal_done)}"


def _flag_line(subgoal_done: bool) -> str:
    return f"\n{DONE if subgoal_done else CONTINUE}"


def parse_low_level_answer(text: str, answer_format: AnswerFormat | None = None) -> LowLevelAnswer:
    """Parse an action and a flag from any text.

    Without a valid flag the action is that of the full text, the subgoal continues, and the answer is `malformed`.
    Never raises.
    """
    answer_format = answer_format or FirstLine()
    lines = text.rstrip().splitlines(keepends=True)
    flag = lines[-1].strip() if lines else ""
    answer = answer_format.parse("".join(lines[:-1])) if flag in (DONE, CONTINUE) else None
    if answer is not None and not answer.malformed:
        return LowLevelAnswer(answer.action, flag == DONE, malformed=False)
    answer = answer_format.parse(text)
    action = "" if answer is None else answer.action
    return LowLevelAnswer(action, False, malformed=True, valid=answer is not None)


@dataclass(frozen=True)
class HierarchicalAgent:
    """Two levels: the high level writes subgoals, the low level acts until its flag or its budget ends the subgoal.

    Args:
        prompts: prompts of each level.
        max_length: context length of each level in tokens, > 0; the earliest turns are dropped when it is full.
        subgoal_steps: maximum actions per subgoal, > 0.
        answer_format: format of the low level's actions, before its flag, see `lit_rft.agents.formats`; null for
            `FirstLine`.
        subgoal_format: format of the high level's subgoals; null for `FirstLine`.
        keep_thoughts: keep earlier thoughts in the contexts. Otherwise each decision has its own transcript.
        admissible: the low level's use of the admissible actions that an environment reports; null for none. With
            `choose` it chooses an action and a flag; the high level is always free.
    """

    prompts: HierarchyPrompts = field(default_factory=HierarchyPrompts)
    max_length: int = 2048
    subgoal_steps: int = 16
    answer_format: AnswerFormat | None = None
    subgoal_format: AnswerFormat | None = None
    keep_thoughts: bool = True
    admissible: AdmissibleActions | None = None

    def __post_init__(self) -> None:
        check_positive(self, "max_length", "subgoal_steps")

    @property
    def levels(self) -> tuple[str, ...]:
        return ("high", "low")

    @property
    def acting_levels(self) -> tuple[str, ...]:
        return ("low",)

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return HierarchicalSession(self, chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Make a high-level and a low-level transcript; subgoals end as in the record.

        Raises:
            ValueError: If the episode has steps but no subgoals.
        """
        if episode.steps and not episode.subgoals:
            raise ValueError(f"episode {episode.id!r} has no subgoals: annotate it first, or train a flat agent")
        session = HierarchicalSession(self, chat, frozenset(subgoal.end for subgoal in episode.subgoals))
        return replay(
            session, episode, chat, {"high": self._goals(episode, chat), "low": self._actions(episode, chat)},
            keep_thoughts=self.keep_thoughts, max_length=self.max_length,
        )  # fmt: skip

    def _goals(self, episode: Episode, chat: ChatFormat) -> list[str]:
        """Return the high level's utterances."""

        def means(text: str, index: int) -> bool:
            return _goal_of(read_answer(self.subgoal_format, chat, text).action) == episode.subgoals[index].goal

        texts = [write_answer(self.subgoal_format, chat, subgoal.goal) for subgoal in episode.subgoals]
        return recorded_utterances(episode, "high", texts, means)

    def _actions(self, episode: Episode, chat: ChatFormat) -> list[str]:
        """Return the low level's utterances."""
        completed = {subgoal.end - 1 for subgoal in episode.subgoals if subgoal.completed}

        def means(text: str, index: int) -> bool:
            answer = self.low_level_answer(text, chat)
            return (answer.action, answer.subgoal_done) == (episode.steps[index].action, index in completed)

        texts = [
            write_answer(self.answer_format, chat, step.action, thought, _flag_line(index in completed))
            for index, (step, thought) in enumerate(zip(episode.steps, recorded_thoughts(episode), strict=True))
        ]
        return recorded_utterances(episode, "low", texts, means)

    def low_level_answer(self, text: str, chat: ChatFormat) -> LowLevelAnswer:
        """Parse any low-level utterance."""
        spoken = chat.answer(text)
        if spoken is None:
            return LowLevelAnswer("", False, malformed=True, valid=False)
        return parse_low_level_answer(spoken, self.answer_format)

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        """Return the outcomes of a level.

        High level: the environment's reward over the steps of the subgoal (GLIDER's D^h). Low level: the intrinsic
        reward (D^l).

        Raises:
            ValueError: If the episode has steps but no subgoals.
        """
        return high_level_outcomes(episode) if level == "high" else low_level_outcomes(episode)

    def update(self, level: str, observation: str) -> str:
        return self.prompts.high_update(observation) if level == "high" else self.prompts.low_update(observation)


class HierarchicalSession:
    """One episode of a `HierarchicalAgent`: each level has one conversation over the full episode.

    Args:
        agent: its settings.
        chat: writes the prompts as token ids.
        subgoal_ends: numbers of steps after which a subgoal ends, from a record; None: by its flag or its budget.
    """

    def __init__(self, agent: HierarchicalAgent, chat: ChatFormat, subgoal_ends: frozenset[int] | None = None) -> None:
        self.agent, self.chat = agent, chat
        self.malformed = 0
        self._subgoal_ends = subgoal_ends
        self._steps = 0
        self._spans: list[Subgoal] = []
        self._asked = "high"
        self._subgoal_over = False
        self._actions: list[str] = []

    def admit(self, actions: Sequence[str]) -> None:
        """Take the admissible actions at the next observation."""
        settings = self.agent.admissible
        self._actions = [] if settings is None else settings.within_limits(actions)

    def start(self, task_description: str, observation: str) -> Ask:
        prompts = self.agent.prompts
        self._task, self._observation = task_description, observation
        system = system_text(prompts.high, self.agent.subgoal_format)
        return self._ask("high", self.chat.head(system, prompts.high_opening(task_description, observation)))

    def receive(self, text: str) -> Ask | Act:
        return self._begin_subgoal(text) if self._asked == "high" else self._act(text)

    def observe(self, observation: str) -> Ask:
        """Process the observation after the last action; the level that decides next reads it."""
        self._observation = observation
        level = "high" if self._subgoal_over else "low"
        read = self._shown(observation) if level == "low" else observation
        return self._ask(level, self.chat.turn(self.agent.update(level, read)))

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        """Return the subgoals over the first `num_steps` steps; one without a step is left out."""
        spans = [replace(span, end=min(span.end, num_steps)) for span in self._spans]
        return [span for span in spans if span.end > span.start]

    def _ask(self, level: str, ids: list[int]) -> Ask:
        self._asked = level
        return Ask(level, ids, self._choices() if level == "low" else ())

    def _shown(self, observation: str) -> str:
        settings = self.agent.admissible
        return observation if settings is None else settings.text(observation, self._actions)

    def _choices(self) -> list[list[int]]:
        """Return the utterances of the actions to choose among, with either flag; none if the low level is free."""
        settings, answer_format = self.agent.admissible, self.agent.answer_format
        return [
            self.chat.utterance(write_answer(answer_format, self.chat, action, more=_flag_line(done)))
            for action in (self._actions if settings is not None and settings.choose else ())
            for done in (True, False)
        ]

    def _begin_subgoal(self, text: str) -> Ask:
        answer = read_answer(self.agent.subgoal_format, self.chat, text)
        self.malformed += answer.malformed
        goal = answer.action
        chat, prompts, observation = self.chat, self.agent.prompts, self._shown(self._observation)
        task = separate_task(self._task, self._observation)
        if self._spans:
            ids = chat.turn(prompts.low_update(observation, goal))
        else:
            system = system_text(prompts.low, self.agent.answer_format)
            ids = chat.head(system, prompts.low_opening(task, observation, goal))
        goal = _goal_of(goal)
        self._spans.append(Subgoal(self._steps, self._steps, goal, completed=False, annotator="policy"))
        self._subgoal_over = False
        return self._ask("low", ids)

    def _act(self, text: str) -> Act:
        answer = self.agent.low_level_answer(text, self.chat)
        self.malformed += answer.malformed
        self._steps += 1
        span = self._spans[-1]
        span.end, span.completed = self._steps, answer.subgoal_done
        if self._subgoal_ends is None:
            self._subgoal_over = answer.subgoal_done or span.end - span.start >= self.agent.subgoal_steps
        else:
            self._subgoal_over = self._steps in self._subgoal_ends
        return Act(answer.action, answer.valid)


def _goal_of(text: str) -> str:
    """Return a subgoal for the record, which must not be empty."""
    return text if text.strip() else "(none)"
