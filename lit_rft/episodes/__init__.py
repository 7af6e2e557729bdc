"""Records of episodes: actions, observations, rewards, subgoals. No torch."""

from lit_rft.episodes.demonstrations import make_demonstrations, read_demonstrations
from lit_rft.episodes.failures import DistinctFailures
from lit_rft.episodes.intrinsic import intrinsic_rewards
from lit_rft.episodes.io import EpisodeWriter, read_episodes, write_episodes
from lit_rft.episodes.pairs import EpisodePair, PairReport, cut_episode, pair_with_experts
from lit_rft.episodes.record import Achieved, Episode, EpisodeError, Outcome, Step, Subgoal
from lit_rft.episodes.subgoals import UNFINISHED_GOAL, annotate_events, apply_annotator

__all__ = [
    "UNFINISHED_GOAL",
    "Achieved",
    "DistinctFailures",
    "Episode",
    "EpisodeError",
    "EpisodePair",
    "EpisodeWriter",
    "Outcome",
    "PairReport",
    "Step",
    "Subgoal",
    "annotate_events",
    "apply_annotator",
    "cut_episode",
    "intrinsic_rewards",
    "make_demonstrations",
    "pair_with_experts",
    "read_demonstrations",
    "read_episodes",
    "write_episodes",
]
