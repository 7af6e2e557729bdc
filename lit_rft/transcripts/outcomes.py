"""What each decision of a transcript led to, at its own level: the data of the critics.

High level: the environment's reward over the steps that the subgoal lasted (GLIDER's D^h). Low level: the intrinsic
reward (D^l). Flat: the environment's reward of the step.

The low level's task ends when its subgoal is completed, and at the latest with the subgoal, however that ended: with
its own flag, or with its step budget, after which another subgoal takes its place. Only where the episode was cut in
the middle of a subgoal does the value of the next state stand for what would have come; the high level and a flat agent
bootstrap there in the same way. (A record does not say whether a budget ran out in the very step at which the episode
was cut: that counts as cut.)
"""

from collections.abc import Sequence

from lit_rft.episodes import Episode, intrinsic_rewards
from lit_rft.transcripts.chat import ChatFormat
from lit_rft.transcripts.hierarchy import HierarchyPrompts
from lit_rft.transcripts.transcript import DecisionOutcome, Transcript


def add_outcomes(
    transcripts: Sequence[Transcript], episode: Episode, chat: ChatFormat, prompts: HierarchyPrompts
) -> list[Transcript]:
    """The episode's transcripts with what each decision led to.

    Args:
        transcripts: of this episode, from its record or as they were played; early turns may have been dropped.
    Returns: copies that end with the state after the last decision, unless that decision terminated its level. A last
        utterance that nothing came of (a subgoal without a step) is left out; so is a transcript without any decision.
    Raises: ValueError if a low-level transcript's episode has no subgoals.
    """
    found = []
    for transcript in transcripts:
        outcomes = _OUTCOMES[transcript.level](episode)[transcript.dropped_turns :]
        ended = transcript.first_decisions(len(outcomes)) if transcript.num_decisions > len(outcomes) else transcript
        if not outcomes:
            continue
        whole = ended.copy()
        whole.outcomes = outcomes
        if not outcomes[-1].terminated and whole.utterance_ends[-1] == len(whole) - 1:
            observation = episode.steps[-1].observation
            update = prompts.update(transcript.level, observation)
            whole.append_prompt(chat.turn(update))
        found.append(whole)
    return found


def _high(episode: Episode) -> list[DecisionOutcome]:
    outcomes = []
    for subgoal in episode.subgoals:
        reward = sum(step.reward for step in episode.steps[subgoal.start : subgoal.end])
        terminated = episode.outcome.terminated and subgoal.end == len(episode.steps)
        outcomes.append(DecisionOutcome(reward, subgoal.end - subgoal.start, terminated))
    return outcomes


def _low(episode: Episode) -> list[DecisionOutcome]:
    rewards = intrinsic_rewards(episode)
    ends = {subgoal.end - 1 for subgoal in episode.subgoals}
    completed = {index for index, reward in enumerate(rewards) if reward}
    if not episode.outcome.terminated and episode.subgoals and not episode.subgoals[-1].completed:
        ends.discard(len(episode.steps) - 1)  # cut in the middle of the last subgoal
    return [DecisionOutcome(reward, 1, index in ends | completed) for index, reward in enumerate(rewards)]


def _flat(episode: Episode) -> list[DecisionOutcome]:
    last = len(episode.steps) - 1 if episode.outcome.terminated else -1
    return [DecisionOutcome(step.reward, 1, index == last) for index, step in enumerate(episode.steps)]


_OUTCOMES = {"high": _high, "low": _low, "flat": _flat}
