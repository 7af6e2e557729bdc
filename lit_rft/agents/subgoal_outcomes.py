"""Rewards, durations and ends of the decisions of a hierarchy, from an episode's subgoals (GLIDER's D^h and D^l)."""

from lit_rft.episodes import Episode, intrinsic_rewards
from lit_rft.transcripts import DecisionOutcome


def high_level_outcomes(episode: Episode) -> list[DecisionOutcome]:
    """Return the high level's outcomes: the environment's reward over the steps of each subgoal."""
    outcomes = []
    for subgoal in episode.subgoals:
        reward = sum(step.reward for step in episode.steps[subgoal.start : subgoal.end])
        terminated = episode.outcome.terminated and subgoal.end == len(episode.steps)
        outcomes.append(DecisionOutcome(reward, subgoal.end - subgoal.start, terminated))
    return outcomes


def low_level_outcomes(episode: Episode) -> list[DecisionOutcome]:
    """Return the low level's outcomes: the intrinsic reward of each step.

    Its task ends when its subgoal is completed, and at the latest at the end of the subgoal (by its flag or step
    budget), when the next subgoal starts. Only if the episode was cut in the middle of a subgoal is the value of the
    next state bootstrapped. (A record does not tell whether a budget ended in the very step at which the episode was
    cut: that counts as cut.)
    """
    rewards = intrinsic_rewards(episode)
    ends = {subgoal.end - 1 for subgoal in episode.subgoals}
    completed = {index for index, reward in enumerate(rewards) if reward}
    if not episode.outcome.terminated and episode.subgoals and not episode.subgoals[-1].completed:
        ends.discard(len(episode.steps) - 1)  # cut in the middle of the last subgoal
    return [DecisionOutcome(reward, 1, index in ends | completed) for index, reward in enumerate(rewards)]
