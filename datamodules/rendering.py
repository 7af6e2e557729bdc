"""Transcripts of stored episodes within an agent's context."""

import logging
from collections.abc import Iterable, Sequence

from lit_rft.transcripts import Transcript

logger = logging.getLogger(__name__)


def within_context(transcripts: Iterable[Transcript], max_length: int) -> list[Transcript]:
    """Shorten transcripts to a context; those that keep no decision are left out.

    `add_outcomes` appends the state after the last decision so that this decision is left; a prompt that an agent's
    own `transcripts` end with may fill the context.

    Raises:
        ValueError: A head and the last turn alone are longer than `max_length`: its decision was never made in it.
    """
    shortened = [transcript.truncated(max_length) for transcript in transcripts]
    return [transcript for transcript in shortened if transcript.num_decisions]


def log_sizes(episodes: Sequence[Sequence[Transcript]], max_length: int, without_decisions: int = 0) -> None:
    """Log the numbers of transcripts and tokens, and warn of those that were cut or left out.

    Args:
        episodes: the transcripts of each.
        max_length: of the agent.
        without_decisions: number of transcripts that were left out.
    """
    if without_decisions:
        logger.warning(
            "%d transcripts are left out: the prompt after the last decision fills max_length=%d",
            without_decisions, max_length,
        )  # fmt: skip
    flat = [t for ts in episodes for t in ts]
    tokens = sum(map(len, flat))
    actions = sum(sum(t.action_mask) for t in flat)
    share = 100 * actions / tokens
    logger.info("training on %d episodes: %d tokens, %.0f%% of them actions", len(episodes), tokens, share)
    cut = [t for t in flat if t.dropped_turns]
    if cut:
        turns, dropped = sum(t.dropped_turns for t in cut), sum(t.dropped_tokens for t in cut)
        logger.warning(
            "%d of %d transcripts were longer than max_length=%d and lost their first turns: %d turns, %d tokens",
            len(cut), len(flat), max_length, turns, dropped,
        )  # fmt: skip
