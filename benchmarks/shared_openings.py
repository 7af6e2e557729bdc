"""Episodes of the demo with and without shared openings: seconds of the first turn, and of eight turns.

    python benchmarks/shared_openings.py runs/demo        # after `make demo`

The trained policy reads the observations of the demo's recorded episodes, and answers greedily. Either all
conversations are of different games, which share the system prompt, or eight each are of the same game, as in GRPO.
Rounds with and without `shared_openings`, in turns; only sampling is timed. Writes
`benchmarks/results/shared_openings.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment import RESULTS, environment
from lookup_decoding import MODEL, TURNS, load_policy, play, read_prompts, seconds
from peers import show, without_and_with
from rich.console import Console

from lit_rft._files import write_json
from lit_rft.models import load_tokenizer
from lit_rft.transcripts import ChatFormat

ROWS, GROUP, ROUNDS = (8, 16, 32), 8, 3
FILE = RESULTS / "shared_openings.json"


def compare(model: Any, conversations: Sequence[list[list[int]]], chat: ChatFormat) -> dict[str, float]:
    """Play rounds on both sides in turns; return medians, and ratios with the lowest and the highest."""
    plain, shared = without_and_with(model, "shared_openings", lambda: play(model, conversations, chat), ROUNDS)
    row = {"tokens read without": plain[0]["read"], "tokens read with": shared[0]["read"]}
    for key, title in (("first", "first turn"), ("seconds", f"{TURNS} turns")):
        row |= {f"{title}, {name}": value for name, value in seconds(plain, shared, key).items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=Path, help="folder of a demo")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="conversations at the same time")
    options = parser.parse_args()
    chat = ChatFormat(load_tokenizer(MODEL))
    model, games = load_policy(options.run), read_prompts(options.run, chat)
    result: dict[str, Any] = {}
    for rows in options.rows:
        cases = {"games": games[:rows], "groups": [games[number // GROUP] for number in range(rows)]}
        for name, conversations in cases.items():
            with Console().status(f"{rows} {name}, {1 + ROUNDS} rounds"):
                result[f"{rows} rows, {name}"] = compare(model, conversations, chat)
    write_json(FILE, {"rows": result, "turns": TURNS, **environment()})
    show("shared openings", result)


if __name__ == "__main__":
    main()
