"""Agents and sessions around others: what they do not change is the other's own, its optional parts as well."""

from collections.abc import Sequence

from lit_rft.agents.admissible import AdmissibleActions
from lit_rft.agents.base import Agent, Session, Turn
from lit_rft.agents.optional import (
    acting_levels,
    admissible_actions,
    admit,
    keeps_thoughts,
    keeps_turns,
    notice,
    prepare,
    retell,
)
from lit_rft.episodes import Episode, Step, Subgoal
from lit_rft.transcripts import DecisionOutcome


class AroundAgent:
    """An agent that has another one act. Subclasses write `inner`, `session` and `transcripts`."""

    @property
    def inner(self) -> Agent:
        """The other agent."""
        raise NotImplementedError

    @property
    def levels(self) -> tuple[str, ...]:
        return self.inner.levels

    @property
    def max_length(self) -> int:
        return self.inner.max_length

    @property
    def keep_thoughts(self) -> bool:
        return keeps_thoughts(self.inner)

    @property
    def keep_turns(self) -> bool:
        return keeps_turns(self.inner)

    @property
    def admissible(self) -> AdmissibleActions | None:
        return admissible_actions(self.inner)

    @property
    def acting_levels(self) -> tuple[str, ...]:
        return acting_levels(self.inner)

    def outcomes(self, episode: Episode, level: str) -> list[DecisionOutcome]:
        return self.inner.outcomes(episode, level)

    def retell(self, episode: Episode) -> str:
        return retell(self.inner, episode)

    def update(self, level: str, observation: str) -> str:
        return self.inner.update(level, observation)


class AroundSession:
    """A session that has another one act. Subclasses write `start`.

    Args:
        inner: the other session.
    """

    def __init__(self, inner: Session) -> None:
        self.inner = inner

    @property
    def malformed(self) -> int:
        return self.inner.malformed

    def prepare(self, task: str, notes: Sequence[str]) -> None:
        prepare(self.inner, task, notes)

    def admit(self, actions: Sequence[str]) -> None:
        admit(self.inner, actions)

    def notice(self, step: Step) -> None:
        notice(self.inner, step)

    def receive(self, text: str) -> Turn:
        return self.inner.receive(text)

    def observe(self, observation: str) -> Turn:
        return self.inner.observe(observation)

    def subgoals(self, num_steps: int) -> list[Subgoal]:
        return self.inner.subgoals(num_steps)
