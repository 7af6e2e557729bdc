"""The scripted agent: plays given actions without a model (expert solutions, recorded actions)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lit_rft.agents.base import Act, Session, Stop
from lit_rft.episodes import Episode, Subgoal
from lit_rft.transcripts import ChatFormat, DecisionOutcome, Transcript

SCRIPT_END = "script_end"  # reason of an episode that was not over after the last scripted action


@dataclass(frozen=True)
class ScriptedAgent:
    """An agent with given actions. It has no levels: nothing is sampled or trained.

    Args:
        script: from an episode's id to its actions.
    """

    script: Callable[[str], Sequence[str]]
    max_length: int = 1

    @property
    def levels(self) -> tuple[str, ...]:
        return ()

    def session(self, episode_id: str, chat: ChatFormat) -> Session:
        return ScriptedSession(self.script(episode_id))

    def transcripts(self, episode: Episode, chat: ChatFormat) -> list[Transcript]:
        return []

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        return []

    def update(self, level: str, observation: str) -> str:
        return observation.strip()


class ScriptedSession:
    """One episode of a `ScriptedAgent`."""

    malformed = 0

    def __init__(self, actions: Sequence[str]) -> None:
        self._actions: Iterator[str] = iter(actions)

    def start(self, task_description: str, observation: str) -> Act | Stop:
        return self._next()

    def observe(self, observation: str) -> Act | Stop:
        return self._next()

    def receive(self, text: str) -> Act | Stop:
        raise RuntimeError("a scripted session asks for no utterance")

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        return []

    def _next(self) -> Act | Stop:
        action = next(self._actions, None)
        return Stop(SCRIPT_END) if action is None else Act(action)
