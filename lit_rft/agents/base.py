"""What an agent is: immutable settings that make sessions (episodes in progress) and render stored episodes."""

from dataclasses import dataclass
from typing import Protocol

from lit_rft.episodes import Episode, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript


@dataclass(frozen=True)
class Ask:
    """The agent's level reads `ids` and is to write its next utterance: sample it."""

    level: str
    ids: list[int]


@dataclass(frozen=True)
class Act:
    """The agent acts: `text` goes to the environment.

    `valid` is False for an invalid answer, which had no action: its text is empty, and the step counts as not valid,
    whatever the environment reports.
    """

    text: str
    valid: bool = True


@dataclass(frozen=True)
class Stop:
    """The agent ends the episode, which is truncated; `reason` is a short word for its record."""

    reason: str


Turn = Ask | Act | Stop


class Session(Protocol):
    """One episode in progress.

    A session never calls the model: it answers with a `Turn`, and whoever plays samples for it.
    """

    @property
    def malformed(self) -> int:
        """Number of utterances so far that did not have the expected form, invalid answers among them."""
        ...

    def start(self, task_description: str, observation: str) -> Turn:
        """Begin the episode."""
        ...

    def receive(self, text: str) -> Turn:
        """Take the utterance that the last `Ask` asked for."""
        ...

    def observe(self, observation: str) -> Turn:
        """Take the environment's answer to the last `Act`."""
        ...

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        """Return what the record keeps beside the actions: contiguous spans over the first `num_steps` steps, or []."""
        ...


class Agent(Protocol):
    """Settings of an agent: a frozen dataclass, given by `class_path` and `init_args` in a config.

    An agent holds neither model nor tokenizer; the chat format comes in where token ids are made. The command line
    accepts a class whose methods have the same annotations.

    An agent may also have `keep_thoughts: bool`. If it is False, no level reads its earlier thoughts again, and each
    decision has a transcript of its own.
    """

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of its conversations, one per level in each episode; metrics and transcripts carry them."""
        ...

    @property
    def max_length(self) -> int:
        """Context length of each level in tokens; earlier turns are dropped when it is full."""
        ...

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        """Make the session of an episode."""
        ...

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Render a stored episode: the token ids of each level, as they are when it is played.

        Raises: ValueError if the episode lacks what the agent needs.
        """
        ...

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        """Return the reward, duration and end of each decision of a level (data of the critics)."""
        ...

    def update(self, level: str, observation: str) -> str:
        """Return what a level reads after its last decision: the state whose value stands for the future."""
        ...


def check_positive(agent: Agent, *names: str) -> None:
    """Raises: ValueError for a setting that is not a positive number."""
    for name in names:
        if not getattr(agent, name) > 0:
            raise ValueError(f"{name} must be > 0, got {getattr(agent, name)}")
