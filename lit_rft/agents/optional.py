"""Optional parts of agents and sessions: each a protocol, with what holds for those without it."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from lit_rft.agents.admissible import AdmissibleActions
from lit_rft.agents.base import Agent, Session
from lit_rft.envs.base import EpisodeSpec
from lit_rft.episodes import Episode, Step


@runtime_checkable
class SupportsThoughts(Protocol):
    """An agent that can do without its earlier thoughts."""

    @property
    def keep_thoughts(self) -> bool:
        """If False, no level reads its earlier thoughts again, and each decision has its own transcript."""
        ...


@runtime_checkable
class SupportsTurns(Protocol):
    """An agent that can do without its earlier turns."""

    @property
    def keep_turns(self) -> bool:
        """If False, each prompt is a conversation of its own."""
        ...


@runtime_checkable
class SupportsAdmissible(Protocol):
    """An agent that reads the admissible actions; its sessions are `SupportsAdmit`."""

    @property
    def admissible(self) -> AdmissibleActions | None:
        """Use of the admissible actions; None for none."""
        ...


@runtime_checkable
class SupportsActingLevels(Protocol):
    """An agent of which only some levels read the list of admissible actions."""

    @property
    def acting_levels(self) -> tuple[str, ...]:
        """Names of these levels."""
        ...


@runtime_checkable
class SupportsTrials(Protocol):
    """An agent that plays problems of an evaluation several times."""

    def next_trial(self, spec: EpisodeSpec, trials: Sequence[Episode]) -> EpisodeSpec | None:
        """Return the specification of a problem's next trial, with an id of its own; None after the last one.

        Args:
            spec: of the problem.
            trials: its trials so far, in order.
        """
        ...


@runtime_checkable
class SupportsInner(Protocol):
    """An agent around another one, whose trials it plays if it has none of its own."""

    @property
    def inner(self) -> Agent:
        """The other agent."""
        ...


@runtime_checkable
class SupportsRetelling(Protocol):
    """An agent that writes stored episodes in its own format."""

    def retell(self, episode: Episode) -> str:
        """Write an episode's utterances and observations, for a prompt of a later trial."""
        ...


@runtime_checkable
class SupportsPrepare(Protocol):
    """A session that reads the name of its task, and notes on it."""

    def prepare(self, task: str, notes: Sequence[str]) -> None:
        """Take the name of the task and `EpisodeSpec.notes`, before `start`."""
        ...


@runtime_checkable
class SupportsNotice(Protocol):
    """A session that reads the reward, score and validity of its steps."""

    def notice(self, step: Step) -> None:
        """Take the record of the last step, before `observe`."""
        ...


@runtime_checkable
class SupportsAdmit(Protocol):
    """A session that reads the admissible actions."""

    def admit(self, actions: Sequence[str]) -> None:
        """Take the admissible actions, before `start` and `observe`; none if the environment reports none."""
        ...


def keeps_thoughts(agent: Agent) -> bool:
    """Return whether the agent's levels read their earlier thoughts again."""
    return agent.keep_thoughts if isinstance(agent, SupportsThoughts) else True


def keeps_turns(agent: Agent) -> bool:
    """Return whether the agent's levels read their earlier turns again."""
    return agent.keep_turns if isinstance(agent, SupportsTurns) else True


def admissible_actions(agent: Agent) -> AdmissibleActions | None:
    """Return the agent's use of admissible actions; None for none."""
    return agent.admissible if isinstance(agent, SupportsAdmissible) else None


def acting_levels(agent: Agent) -> tuple[str, ...]:
    """Return the levels that read the list of admissible actions."""
    return agent.acting_levels if isinstance(agent, SupportsActingLevels) else agent.levels


def next_trial_of(agent: Agent) -> Callable[[EpisodeSpec, Sequence[Episode]], EpisodeSpec | None] | None:
    """Return `next_trial` of the agent, or of the one that it is around; None if it plays each problem once."""
    if isinstance(agent, SupportsTrials):
        return agent.next_trial
    return next_trial_of(agent.inner) if isinstance(agent, SupportsInner) else None


def retell(agent: Agent, episode: Episode) -> str:
    """Write an episode for a prompt: as the agent does, or its actions and observations."""
    if isinstance(agent, SupportsRetelling):
        return agent.retell(episode)
    return "\n".join(f"> {step.action}\n{step.observation.strip()}" for step in episode.steps)


def prepare(session: Session, task: str, notes: Sequence[str]) -> None:
    """Give a session the name of its task and notes, if it reads them."""
    if isinstance(session, SupportsPrepare):
        session.prepare(task, notes)


def notice(session: Session, step: Step) -> None:
    """Give a session the record of the last step, if it reads it."""
    if isinstance(session, SupportsNotice):
        session.notice(step)


def admit(session: Session, actions: Sequence[str]) -> None:
    """Give a session the admissible actions, if it reads them."""
    if isinstance(session, SupportsAdmit):
        session.admit(actions)
