"""The decisions of one level in a micro-batch, with what critics read of them."""

from typing import NamedTuple

from torch import Tensor

from lit_rft.models.features import DecisionFeatures
from lit_rft.transcripts import TranscriptBatch


class LevelDecisions(NamedTuple):
    """The decisions of one level in a micro-batch, N of them, transcript after transcript."""

    features: DecisionFeatures  # [N, D] each
    proposals: Tensor | None  # [N, D], features of other utterances in the same states, for L_V
    level: str
    code: int  # the level's index among the agent's
    rewards: Tensor  # [N]
    steps: Tensor  # [N]
    terminated: Tensor  # [N] bool
    owner: Tensor  # [N], index of the transcript


def decisions_at(
    level: str, code: int, micro: TranscriptBatch, features: DecisionFeatures, proposals: Tensor | None
) -> LevelDecisions:
    """Select the decisions of one level in a micro-batch."""
    rows = micro.at_level(level)
    selected = DecisionFeatures(*(feature[rows] for feature in features))
    return LevelDecisions(
        selected,
        None if proposals is None else proposals[rows],
        level,
        code,
        micro.rewards[rows],
        micro.steps[rows],
        micro.terminated[rows],
        micro.transcript_index[rows],
    )


def check_outcomes(micro: TranscriptBatch) -> None:
    """Check that transcripts have outcomes.

    Raises:
        ValueError: For transcripts without outcomes.
    """
    without = [t.episode_id for t in micro.transcripts if not t.outcomes]
    if without:
        raise ValueError(
            f"the transcripts of {', '.join(without[:3])} have no outcomes, which critics learn from: remove "
            "data.init_args.outcomes, or use `add_outcomes`"
        )
