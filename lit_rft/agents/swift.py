"""Swift, the fast part of SwiftSage (Lin et al. 2023, arXiv 2305.17390): a flat policy that reads fields."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lit_rft.agents.answers import read_answer, write_answer
from lit_rft.agents.base import Act, Ask, Session, check_positive
from lit_rft.agents.opening import separate_task
from lit_rft.agents.records import recorded_utterances, replay, step_outcomes
from lit_rft.episodes import Episode, Step, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript

SWIFT = "swift"


@dataclass(frozen=True)
class StateField:
    """A field of the prompt: the observation of the last valid action of a kind.

    Args:
        name: heading of the field.
        actions: beginnings of the actions; an empty one is that of every action.
        opening: begin with the first observation of the episode; else the field is left out until there is an action.
        max_characters: of the observation, > 0.
    """

    name: str
    actions: Sequence[str]
    opening: bool = True
    max_characters: int = 800

    def __post_init__(self) -> None:
        check_positive(self, "max_characters")
        if not self.name or isinstance(self.actions, str) or not self.actions:
            raise ValueError(f"a field needs a name and a list of actions, got {self.name!r} and {self.actions!r}")

    def text(self, progress: "Progress") -> str:
        """Return the field's observation in one line; empty without any."""
        beginnings = tuple(self.actions)
        seen = [step.observation for step in progress.steps if step.valid and step.action.startswith(beginnings)]
        observation = seen[-1] if seen else progress.opening if self.opening else ""
        return one_line(separate_task(observation, progress.task), self.max_characters)


def _last_observation() -> list[StateField]:
    return [StateField("Observation", [""])]


@dataclass
class Progress:
    """An episode so far, as fields of prompts.

    Args:
        task: the task in words.
        opening: the first observation.
        steps: steps so far.
    """

    task: str
    opening: str
    steps: list[Step] = field(default_factory=list)

    @property
    def score(self) -> float:
        return self.steps[-1].score if self.steps else 0.0

    def text(self, number: int, max_characters: int, fields: Sequence[StateField]) -> str:
        """Write the state: task, time, score, last actions with the starts of their observations, then the fields.

        Args:
            number: of last actions.
            max_characters: of the observation of each.
            fields: see `StateField`.
        """
        first = max(0, len(self.steps) - number)
        actions = [
            f"{index}. {step.action or '(none)'}{f' ({step.reward:+.2f})' if step.reward else ''}: "
            f"{one_line(step.observation, max_characters)}"
            for index, step in enumerate(self.steps[first:], start=first + 1)
        ]
        parts = {
            "Task": self.task,
            "Time": f"{len(self.steps)}. Score: {self.score:.2f}",
            "Last actions": "\n".join(["", *actions]) if actions else "none",
        } | {field.name: field.text(self) for field in fields}
        return "\n".join(f"{name}: {text}" for name, text in parts.items() if text)


def one_line(text: str, max_characters: int) -> str:
    """Return a text in one line, cut to a length."""
    line = " | ".join(part.strip() for part in text.splitlines() if part.strip())
    return line if len(line) <= max_characters else f"{line[:max_characters]} ..."


def fitting(chat: ChatFormat, system: str, user: Callable[[int], str], history: int, max_length: int) -> list[int]:
    """Return a prompt with as much history as three quarters of a context hold.

    Args:
        chat: writes the prompt.
        system: system prompt.
        user: writes the user's turn with a number of last actions.
        history: their maximum number.
        max_length: of the context, in tokens.
    """
    while True:
        ids = chat.head(system, user(history))
        if history == 1 or len(ids) <= 3 * max_length // 4:
            return ids
        history //= 2


@dataclass(frozen=True)
class SwiftAgent:
    """A flat policy that reads the state of an episode as fields: score, last actions, and observations by `fields`.

    Each prompt is a conversation of its own, and so is each example in training. Every action of an expert episode is
    an example, the first one included. Critics read the state after an action as that conversation with the action and
    the observation, not as the fields of the next prompt.

    Args:
        prompt: system prompt.
        max_length: maximum tokens of a prompt with its action, > 0.
        history: number of last actions in a prompt, > 0.
        max_characters: of the observation of each of them, > 0.
        fields: further observations in a prompt, each under its name; by default the last one. The paper's are those of
            the room and of the inventory, whose actions have their environment's words.
    """

    prompt: str = "You act. Read the state of the task, and answer with the next action."
    max_length: int = 2048
    history: int = 10
    max_characters: int = 200
    fields: Sequence[StateField] = field(default_factory=_last_observation)

    def __post_init__(self) -> None:
        check_positive(self, "max_length", "history", "max_characters")

    def state(self, progress: Progress, number: int) -> str:
        """Write an episode so far, with a number of last actions."""
        return progress.text(number, self.max_characters, self.fields)

    @property
    def levels(self) -> tuple[str, ...]:
        return (SWIFT,)

    @property
    def keep_turns(self) -> bool:
        return False

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return SwiftSession(self, chat)

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        """Make one transcript per action."""

        def means(text: str, index: int) -> bool:
            return read_answer(None, chat, text).action == episode.steps[index].action

        texts = [write_answer(None, chat, step.action) for step in episode.steps]
        return replay(
            SwiftSession(self, chat), episode, chat, {SWIFT: recorded_utterances(episode, SWIFT, texts, means)},
            keep_turns=self.keep_turns, max_length=self.max_length,
        )  # fmt: skip

    def ids(self, progress: Progress, chat: ChatFormat) -> list[int]:
        """Return the prompt before the next action."""
        return fitting(
            chat,
            self.prompt,
            lambda number: self.state(progress, number),
            self.history,
            self.max_length,
        )

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        return step_outcomes(episode)

    def update(self, level: str, observation: str) -> str:
        return observation.strip()


class SwiftSession:
    """One episode of a `SwiftAgent`."""

    def __init__(self, agent: SwiftAgent, chat: ChatFormat) -> None:
        self.agent, self.chat = agent, chat
        self.malformed = 0
        self.progress = Progress("", "")

    def notice(self, step: Step) -> None:
        """Take the last step."""
        self.progress.steps.append(step)

    def start(self, task_description: str, observation: str) -> Ask:
        self.progress = Progress(task_description, observation)
        return self.ask()

    def ask(self) -> Ask:
        return Ask(SWIFT, self.agent.ids(self.progress, self.chat))

    def receive(self, text: str) -> Act:
        answer = read_answer(None, self.chat, text)
        self.malformed += answer.malformed
        return Act(answer.action, answer.valid)

    def observe(self, observation: str) -> Ask:
        return self.ask()

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        return []
