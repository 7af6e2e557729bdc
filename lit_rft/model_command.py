"""The command `lit-rft make-model`: a small untrained model for the texts of stored episodes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence

from lit_rft.episodes import Episode, read_episodes
from lit_rft.episodes.subgoals import CONTINUE, DONE
from lit_rft.error_messages import OneLineParser, UsageError


def run_make_model(arguments: Sequence[str]) -> None:
    """Write a small untrained model and a tokenizer of the episodes' words.

    Raises:
        UsageError: wrong arguments, files without episodes, or sizes out of range.
    """
    given = _parser().parse_args(arguments)
    texts = list(_texts(episode for file in given.files for episode in read_episodes(file)))
    if not any(text.strip() for text in texts):
        raise UsageError(
            f"lit-rft make-model: {', '.join(given.files)}: expected episodes with the words of the model, got none: "
            "write some first, see lit-rft collect --help"
        )
    from lit_rft.models.scratch import save_scratch_model

    sizes = {name: getattr(given, name) for name in ("vocab_size", "hidden_size", "layers", "heads")}
    try:
        save_scratch_model(given.out, texts, seed=given.seed, **sizes)
    except ValueError as error:
        raise UsageError(f"lit-rft make-model: {error}") from error
    print(f"{given.out}: an untrained model, for policy.model; train all of its weights (policy.lora null)")


def _texts(episodes: Iterable[Episode]) -> Iterator[str]:
    """Yield all that agents read and write in episodes."""
    for episode in episodes:
        yield episode.task_description
        yield episode.initial_observation
        for step in episode.steps:
            yield step.action
            yield step.observation
        for subgoal in episode.subgoals:
            yield subgoal.goal
            yield f"{DONE}\n{CONTINUE}"  # the flags of a hierarchical agent's actions


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser("lit-rft make-model", description="Write a small untrained model for text games.")
    parser.add_argument("files", nargs="+", help="episodes, as lit-rft collect writes them: texts of the tokenizer")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--vocab_size", type=int, default=1024, help="maximum number of tokens (1024)")
    parser.add_argument("--hidden_size", type=int, default=64, help="(64)")
    parser.add_argument("--layers", type=int, default=2, help="(2)")
    parser.add_argument("--heads", type=int, default=4, help="of attention (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (0)")
    return parser
