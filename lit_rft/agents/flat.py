"""The flat agent: one conversation of observations and actions (the baseline of GLIDER's ablations)."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_rft.agents.admissible import AdmissibleActions
from lit_rft.agents.answers import read_answer, system_text, write_answer
from lit_rft.agents.base import Act, Ask, Session, check_positive
from lit_rft.agents.formats import AnswerFormat
from lit_rft.agents.opening import opening_text
from lit_rft.agents.records import recorded_thoughts, recorded_utterances, replay, step_outcomes
from lit_rft.episodes import Episode, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript


@dataclass(frozen=True)
class FlatAgent:
    """An agent without hierarchy: it answers each observation with an action.

    Args:
        prompt: system prompt, followed by the instruction of the answer format.
        max_length: context length in tokens, > 0; the earliest turns are dropped when it is full.
        answer_format: format of actions, see `lit_rft.agents.formats`; null for `FirstLine`.
        keep_thoughts: keep earlier thoughts in the context. Otherwise each decision has its own transcript.
        admissible: use of the admissible actions that an environment reports; null for none.
    """

    prompt: str = "You act. Read the task and what was observed, and answer with the next action."
    max_length: int = 2048
    answer_format: AnswerFormat | None = None
    keep_thoughts: bool = True
    admissible: AdmissibleActions | None = None

    def __post_init__(self) -> None:
        check_positive(self, "max_length")

    @property
    def levels(self) -> tuple[str, ...]:
        return ("flat",)

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return FlatSession(self, chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Make one transcript of observations and actions; without earlier thoughts, one per action."""
        steps = zip(episode.steps, recorded_thoughts(episode), strict=True)
        texts = [write_answer(self.answer_format, chat, step.action, thought) for step, thought in steps]

        def means(text: str, index: int) -> bool:
            return read_answer(self.answer_format, chat, text).action == episode.steps[index].action

        return replay(
            self.session(episode.id, chat), episode, chat,
            {"flat": recorded_utterances(episode, "flat", texts, means)},
            keep_thoughts=self.keep_thoughts, max_length=self.max_length,
        )  # fmt: skip

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        """Return the environment's reward of each step."""
        return step_outcomes(episode)

    def update(self, level: str, observation: str) -> str:
        return observation.strip()


class FlatSession:
    """One episode of a `FlatAgent`."""

    def __init__(self, agent: FlatAgent, chat: ChatFormat) -> None:
        self.agent, self.chat = agent, chat
        self.malformed = 0
        self._actions: list[str] = []

    def admit(self, actions: Sequence[str]) -> None:
        """Take the admissible actions at the next observation."""
        settings = self.agent.admissible
        self._actions = [] if settings is None else settings.within_limits(actions)

    def start(self, task_description: str, observation: str) -> Ask:
        opening = opening_text(task_description, observation, self._shown(observation))
        ids = self.chat.head(system_text(self.agent.prompt, self.agent.answer_format), opening)
        return Ask("flat", ids, self._choices())

    def receive(self, text: str) -> Act:
        answer = read_answer(self.agent.answer_format, self.chat, text)
        self.malformed += answer.malformed
        return Act(answer.action, answer.valid)

    def observe(self, observation: str) -> Ask:
        ids = self.chat.turn(self.agent.update("flat", self._shown(observation)))
        return Ask("flat", ids, self._choices())

    def _shown(self, observation: str) -> str:
        settings = self.agent.admissible
        return observation if settings is None else settings.text(observation, self._actions)

    def _choices(self) -> list[list[int]]:
        """Return the utterances of the actions to choose among; none if the level is free."""
        settings = self.agent.admissible
        actions = self._actions if settings is not None and settings.choose else []
        return [self.chat.utterance(write_answer(self.agent.answer_format, self.chat, action)) for action in actions]

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        return []
