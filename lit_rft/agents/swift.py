"""Swift, the fast part of SwiftSage (Lin et al. 2023, arXiv 2305.17390): a flat policy that reads fields."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lit_rft.agents.answers import read_answer, write_answer
from lit_rft.agents.base import Act, Ask, Session, check_positive
from lit_rft.agents.opening import separate_task
from lit_rft.agents.records import replay, step_outcomes
from lit_rft.episodes import Episode, Step, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript

SWIFT = "swift"


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

    @property
    def look(self) -> str:
        """The observation of the last action that looks or moves, or the first one of the episode."""
        looks = [step.observation for step in self.steps if step.valid and step.action.startswith(("look", "go "))]
        return looks[-1] if looks else self.opening

    @property
    def inventory(self) -> str:
        """The answer to the last request for the inventory; empty without any."""
        return next((s.observation for s in reversed(self.steps) if s.action == "inventory" and s.valid), "")

    def fields(self, number: int, max_characters: int) -> str:
        """Write the fields, with the last `number` actions, each with its reward and the start of its observation."""
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
            "Look": one_line(separate_task(self.look, self.task), 4 * max_characters),
            "Inventory": one_line(self.inventory, 2 * max_characters),
        }
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
    """A flat policy that reads the state of an episode as fields: score, last actions, look and inventory.

    Each prompt is a conversation of its own, and so is each example in training. Every action of an expert episode is
    an example, the first one included.

    Args:
        prompt: system prompt.
        max_length: maximum tokens of a prompt with its action, > 0.
        history: number of last actions in a prompt, > 0.
        max_characters: of the observation of each of them, > 0; look and inventory may be longer.
    """

    prompt: str = "You act. Read the state of the task, and answer with the next action."
    max_length: int = 2048
    history: int = 10
    max_characters: int = 200

    def __post_init__(self) -> None:
        check_positive(self, "max_length", "history", "max_characters")

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
        texts = {SWIFT: [write_answer(None, chat, step.action) for step in episode.steps]}
        return replay(
            SwiftSession(self, chat), episode, chat, texts, keep_turns=self.keep_turns, max_length=self.max_length
        )

    def ids(self, progress: Progress, chat: ChatFormat) -> list[int]:
        """Return the prompt before the next action."""
        return fitting(
            chat,
            self.prompt,
            lambda number: progress.fields(number, self.max_characters),
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
