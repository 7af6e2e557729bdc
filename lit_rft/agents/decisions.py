"""The decisions of an episode with their states and rewards, for advantages per decision."""

from typing import NamedTuple

from lit_rft.agents.base import Agent
from lit_rft.episodes import Episode
from lit_rft.transcripts import Transcript


class Decision(NamedTuple):
    """One utterance of a level, and what followed.

    Args:
        level: that decided.
        state: observation before it; equal texts count as equal states.
        goal: subgoal in which a level below the first one decided; empty without subgoals.
        segment: index of the episode's subgoal at its first step; -1 without subgoals.
        step: index of its first environment step.
        rewards: the environment's, of each of its steps; empty if it produced none.
        terminated: whether the environment ended the episode with it; a time limit does not.
        completed: whether it ended its level's task; always true if `terminated`.
    """

    level: str
    state: str
    goal: str
    segment: int
    step: int
    rewards: tuple[float, ...]
    terminated: bool
    completed: bool


def transcript_decisions(transcript: Transcript, episode: Episode, agent: Agent) -> list[Decision]:
    """Return the decisions of a transcript, in order.

    Args:
        transcript: of the episode, played or rendered; early turns may have been dropped.
        episode: its record.
        agent: that played, or rendered.

    Raises:
        ValueError: If the episode lacks required parts, such as subgoals.
    """
    decisions, step = [], 0
    for outcome in agent.outcomes(episode, transcript.level):
        decisions.append(_decision(transcript.level, episode, agent, step, outcome.steps, outcome.terminated))
        step += outcome.steps
    last = transcript.first_decision + transcript.num_decisions
    # a last utterance that produced no step, such as a subgoal without an action
    unfinished = _decision(transcript.level, episode, agent, len(episode.steps), 0, False)
    return [*decisions, *[unfinished] * (last - len(decisions))][transcript.first_decision : last]


def _decision(level: str, episode: Episode, agent: Agent, step: int, steps: int, completed: bool) -> Decision:
    segment = sum(subgoal.end <= step for subgoal in episode.subgoals) if episode.subgoals else -1
    below = level != agent.levels[0] and 0 <= segment < len(episode.subgoals)
    terminated = episode.outcome.terminated and steps > 0 and step + steps == len(episode.steps)
    return Decision(
        level,
        episode.steps[step - 1].observation if step else episode.initial_observation,
        episode.subgoals[segment].goal if below else "",
        segment,
        step,
        tuple(taken.reward for taken in episode.steps[step : step + steps]),
        terminated,
        completed or terminated,
    )
