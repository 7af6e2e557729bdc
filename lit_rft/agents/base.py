"""Agents: immutable settings that make sessions (episodes in progress) and render stored episodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lit_rft.episodes import Episode, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript


@dataclass(frozen=True)
class Ask:
    """A turn in which the level reads `ids`; sample its next utterance.

    `choices`: utterances, as token ids, among which it chooses; empty if it is free.
    """

    level: str
    ids: list[int]
    choices: Sequence[list[int]] = ()


@dataclass(frozen=True)
class Act:
    """A turn in which the agent acts: `text` goes to the environment.

    `valid` is False for an invalid answer without an action: its text is empty, and the step counts as not valid,
    independent of the environment's report.
    """

    text: str
    valid: bool = True


@dataclass(frozen=True)
class Stop:
    """A turn in which the agent ends the episode, which is truncated; `reason` is a short word for its record."""

    reason: str


Turn = Ask | Act | Stop


class Session(Protocol):
    """One episode in progress.

    A session never calls the model: it returns a `Turn`, and the player samples for it.

    A session may have the further methods of `lit_rft.agents.optional`, which are called in play and in the replay of a
    record.
    """

    @property
    def malformed(self) -> int:
        """Number of utterances so far without the expected form, including invalid answers."""
        ...

    def start(self, task_description: str, observation: str) -> Turn:
        """Start the episode."""
        ...

    def receive(self, text: str) -> Turn:
        """Process the utterance for the last `Ask`."""
        ...

    def observe(self, observation: str) -> Turn:
        """Process the observation after the last `Act`."""
        ...

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        """Return the subgoals for the record: contiguous spans over the first `num_steps` steps, or []."""
        ...


class Agent(Protocol):
    """Settings of an agent: a frozen dataclass, set by `class_path` and `init_args` in a config.

    An agent holds neither model nor tokenizer: methods that make token ids take the chat format. The command line
    accepts any class whose methods have the same annotations.

    An agent may also have the settings of `lit_rft.agents.optional`: `keep_thoughts`, `keep_turns`, `admissible`,
    `acting_levels`; and its methods `next_trial` and `retell`.
    """

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of its conversations, one per level in each episode, the highest level first.

        Metrics and transcripts use the names. Stages that treat levels differently go by the order.
        """
        ...

    @property
    def max_length(self) -> int:
        """Context length of each level in tokens; the earliest turns are dropped when it is full."""
        ...

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        """Make the session of an episode."""
        ...

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Render a stored episode: the token ids of each level, as in play.

        Raises:
            ValueError: If the episode lacks required parts.
        """
        ...

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        """Return the reward, duration and end of each decision of a level (data of the critics)."""
        ...

    def update(self, level: str, observation: str) -> str:
        """Return the prompt of a level after its last decision: the state whose value is bootstrapped."""
        ...


def check_positive(agent: object, *names: str) -> None:
    """Check settings of an agent or of a part of it.

    Raises:
        ValueError: For a setting that is not a positive number.
    """
    for name in names:
        if not getattr(agent, name) > 0:
            raise ValueError(f"{name} must be > 0, got {getattr(agent, name)}")
