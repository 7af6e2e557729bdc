"""ReAct (Yao et al. 2023, arXiv 2210.03629): a thought, then an action, after examples by task; nothing is trained."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lit_rft.agents.admissible import AdmissibleActions
from lit_rft.agents.answers import read_answer, system_text, write_answer
from lit_rft.agents.base import Act, Ask, Session, Stop, Turn, check_positive
from lit_rft.agents.examples import Examples, step_texts
from lit_rft.agents.formats import Answer
from lit_rft.agents.lines import lines_of, read_line, write_single_line
from lit_rft.agents.opening import opening_text
from lit_rft.agents.records import recorded_thoughts, replay, step_outcomes, texts_of
from lit_rft.episodes import Episode, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript

LEVEL = "flat"
_ACTION = re.compile(r"^[ \t]*Action:[ \t]*", re.MULTILINE | re.IGNORECASE)
_THOUGHT = re.compile(r"^[ \t]*Thought:[ \t]*(?=\S)", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class ThoughtAction:
    """`Thought: ...`, then `Action: ...`, each in a line; the thought may be missing."""

    @property
    def instruction(self) -> str:
        return 'Answer with a line "Thought: ..." if you need one, and a line "Action: ..." with one action.'

    def parse(self, text: str) -> Answer | None:
        """Read the first line after the last `Action:`; further lines are ignored, and make the answer malformed."""
        starts = list(_ACTION.finditer(text))
        lines = lines_of(text[starts[-1].end() :]) if starts else []
        return Answer(read_line(lines[0]), len(lines) > 1 or len(starts) > 1) if lines else None

    def render(self, action: str, thought: str = "") -> str:
        """Write both lines."""
        thought = " ".join(thought.split())
        return f"{f'Thought: {thought}' if thought else ''}\nAction: {write_single_line(action)}".lstrip()


@dataclass(frozen=True)
class ReActAgent:
    """A prompted agent that thinks and acts in one conversation, after examples of the same task.

    Thoughts are never sent to the environment. An utterance without an action but with a thought is answered with "OK."
    and takes no environment step. Any other utterance without an action is invalid, and does take one.

    Args:
        prompt: system prompt, followed by the instruction of the format.
        max_length: context length in tokens, > 0; the earliest turns are dropped when it is full, never the examples.
        examples: expert episodes of the training split, shown before the task; null for none.
        max_thoughts: maximum number of thoughts in a row without an action, >= 0; a further one is invalid.
        turn_limit: maximum number of thoughts and actions together, > 0, after which the episode ends: thoughts without
            an action then count as steps (49 in the paper, on ALFWorld). Null: only actions count.
        repeat_limit: number of times in a row that the same action with the same observation ends the episode, > 1;
            null for no limit.
        admissible: use of the admissible actions that an environment reports; null for none.

    Raises:
        ValueError: a number is out of range.
    """

    prompt: str = "You solve a task step by step. Reason about what you observe, then act."
    max_length: int = 4096
    examples: Examples | None = None
    max_thoughts: int = 1
    turn_limit: int | None = None
    repeat_limit: int | None = None
    admissible: AdmissibleActions | None = None

    def __post_init__(self) -> None:
        check_positive(self, "max_length", *(["turn_limit"] if self.turn_limit is not None else []))
        if self.max_thoughts < 0:
            raise ValueError(f"max_thoughts must be >= 0, got {self.max_thoughts}")
        if self.repeat_limit is not None and self.repeat_limit < 2:
            raise ValueError(f"repeat_limit must be > 1, or null, got {self.repeat_limit}")
        if self.admissible is not None and self.admissible.choose:
            raise ValueError("admissible.choose leaves no room for thoughts: use admissible.show, or FlatAgent")

    @property
    def levels(self) -> tuple[str, ...]:
        return (LEVEL,)

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return ReActSession(self, chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Make one transcript of all turns, thoughts without an action included."""
        texts = {LEVEL: self.utterances(episode, chat)}
        return replay(self.session(episode.id, chat), episode, chat, texts)

    def utterances(self, episode: Episode, chat: ChatFormat) -> list[str]:
        """Return those of the record, if they have its actions; else its actions and thoughts in this format."""
        recorded = texts_of(episode, "utterances", LEVEL)
        session = ReActSession(self, chat)
        actions = [turn.text for turn in map(session.receive, recorded) if isinstance(turn, Act)]
        if actions and actions[: len(episode.steps)] == [step.action for step in episode.steps]:
            return recorded
        steps = zip(episode.steps, recorded_thoughts(episode), strict=True)
        return [write_answer(ThoughtAction(), chat, step.action, thought) for step, thought in steps]

    def retell(self, episode: Episode) -> str:
        """Write an episode: its utterances if they have its actions, else the actions; and the observations."""
        written, lines = iter(texts_of(episode, "utterances", LEVEL)), list[str]()
        for step in episode.steps:
            action = None
            for thoughts, text in enumerate(written):
                lines.append(text.strip())
                answer = ThoughtAction().parse(text)
                if not self.only_thinks(answer is not None, text, thoughts):
                    action = "" if answer is None else answer.action
                    break
            if action != step.action:
                return "\n".join(step_texts(episode, ThoughtAction()))
            lines.append(f"Observation: {step.observation.strip()}")
        return "\n".join(lines)

    def only_thinks(self, valid: bool, text: str, thoughts: int) -> bool:
        """Return whether an utterance is a thought that takes no step.

        Args:
            valid: whether it has an action.
            text: the utterance.
            thoughts: number of such thoughts right before it.
        """
        return not valid and _THOUGHT.search(text) is not None and thoughts < self.max_thoughts

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        """Return the environment's reward of each step.

        Raises:
            ValueError: If the episode has thoughts without an action, which are no steps.
        """
        written = len(texts_of(episode, "utterances", LEVEL))
        if written > len(episode.steps):
            raise ValueError(f"episode {episode.id!r} has {written} utterances in {len(episode.steps)} steps: critics "
                             "need one action per utterance (max_thoughts: 0)")  # fmt: skip
        return step_outcomes(episode)

    def update(self, level: str, observation: str) -> str:
        return observation.strip()


class ReActSession:
    """One episode of a `ReActAgent`."""

    def __init__(self, agent: ReActAgent, chat: ChatFormat) -> None:
        self.agent, self.chat = agent, chat
        self.malformed = 0
        self._task = ""
        self._admissible: list[str] = []
        self._turns = self._thoughts = self._repeats = 0
        self._action, self._last_step = "", ("", "")

    def prepare(self, task: str, notes: Sequence[str]) -> None:
        """Take the name of the task, which chooses the examples."""
        self._task = task

    def admit(self, actions: Sequence[str]) -> None:
        """Take the admissible actions at the next observation."""
        settings = self.agent.admissible
        self._admissible = [] if settings is None else settings.within_limits(actions)

    def start(self, task_description: str, observation: str) -> Ask:
        examples = self.agent.examples
        shown = "" if examples is None else examples.text(self._task, ThoughtAction(), self.chat)
        user = f"{shown}{opening_text(task_description, observation, self._shown(observation))}".strip()
        return Ask(LEVEL, self.chat.head(system_text(self.agent.prompt, ThoughtAction()), user))

    def receive(self, text: str) -> Turn:
        """Act, or go on after a thought."""
        answer = read_answer(ThoughtAction(), self.chat, text)
        self._turns += 1
        limit = self.agent.turn_limit
        if self.agent.only_thinks(answer.valid, text, self._thoughts):
            self._thoughts += 1
            return Stop("turn_limit") if limit == self._turns else Ask(LEVEL, self.chat.turn("OK."))
        self._thoughts, self._action = 0, answer.action
        self.malformed += answer.malformed
        return Act(answer.action, answer.valid)

    def observe(self, observation: str) -> Turn:
        step = (self._action, observation)
        self._repeats, self._last_step = (self._repeats + 1 if step == self._last_step else 1), step
        if self._repeats == self.agent.repeat_limit:
            return Stop("repeated")
        if self._turns == self.agent.turn_limit:
            return Stop("turn_limit")
        return Ask(LEVEL, self.chat.turn(self._shown(observation).strip()))

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        return []

    def _shown(self, observation: str) -> str:
        settings = self.agent.admissible
        return observation if settings is None else settings.text(observation, self._admissible)
