"""The flat agent: one conversation of observations and actions (the baseline of GLIDER's ablations)."""

from dataclasses import dataclass

from lit_rft.agents.base import Act, Ask, Session, check_positive
from lit_rft.agents.lines import parse_single_line, write_single_line
from lit_rft.agents.records import replay, step_outcomes
from lit_rft.episodes import Episode, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript


@dataclass(frozen=True)
class FlatAgent:
    """An agent without hierarchy, which answers each observation with an action.

    Args:
        prompt: system text.
        max_length: context length in tokens, > 0; earlier turns are dropped when it is full.
    """

    prompt: str = "You act. Read the task and what was observed, and answer with the next action."
    max_length: int = 2048

    def __post_init__(self) -> None:
        check_positive(self, "max_length")

    @property
    def levels(self) -> tuple[str, ...]:
        return ("flat",)

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return FlatSession(self, chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """One transcript of observations and actions."""
        actions = [write_single_line(step.action) for step in episode.steps]
        return replay(self.session(episode.id, chat), episode, chat, {"flat": actions})

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        """The environment's reward of each step."""
        return step_outcomes(episode)

    def update(self, level: str, observation: str) -> str:
        return observation.strip()


class FlatSession:
    """One episode of a `FlatAgent`."""

    def __init__(self, agent: FlatAgent, chat: ChatFormat) -> None:
        self.agent, self.chat = agent, chat
        self.malformed = 0

    def start(self, task_description: str, observation: str) -> Ask:
        opening = f"Task: {task_description}\n\n{observation}".strip()
        return Ask("flat", self.chat.head(self.agent.prompt, opening))

    def receive(self, text: str) -> Act:
        action, malformed = parse_single_line(text)
        self.malformed += malformed
        return Act(action)

    def observe(self, observation: str) -> Ask:
        return Ask("flat", self.chat.turn(self.agent.update("flat", observation)))

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        return []
