"""Episodes of the demo with and without shared openings: seconds of the first turn, and of eight turns.

    python benchmarks/shared_openings.py runs/demo        # after `make demo`

The trained policy reads the observations of the demo's recorded episodes, and answers greedily. Either all
conversations are of different games, which share the system prompt, or eight each are of the same game, as in GRPO.
Rounds with and without `shared_openings`, in turns; only sampling is timed. Writes
`benchmarks/results/shared_openings.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment import RESULTS, environment
from lookup_decoding import MODEL, TURNS, load_policy, read_prompts
from peers import show
from rich.console import Console

from lit_rft._files import write_json
from lit_rft.generation import ConversationGenerator, SamplingSettings
from lit_rft.models import FAST_PATHS, accelerate, load_tokenizer
from lit_rft.transcripts import ChatFormat

ROWS, GROUP, ROUNDS = (8, 16, 32), 8, 3
FILE = RESULTS / "shared_openings.json"


def play(model: Any, conversations: Sequence[list[list[int]]], chat: ChatFormat, shared: bool) -> dict[str, float]:
    """Sample all turns of some conversations; return the seconds of the first turn and of all, and tokens read."""
    accelerate(model, [name for name in FAST_PATHS if shared or name != "shared_openings"])
    generator = ConversationGenerator(model, chat.end_ids, SamplingSettings(16), num_slots=len(conversations))
    slots = [generator.open(str(number)) for number in range(len(conversations))]
    started, first = time.perf_counter(), 0.0
    for turn in range(TURNS):
        generator.sample({slot: parts[turn] for slot, parts in zip(slots, conversations, strict=True)})
        first = first or time.perf_counter() - started
    return {"first": first, "all": time.perf_counter() - started, "tokens": generator.tokens_read}


def compare(model: Any, conversations: Sequence[list[list[int]]], chat: ChatFormat) -> dict[str, float]:
    """Play rounds on both sides in turns; return medians, and ratios with the lowest and the highest."""
    sides: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(1 + ROUNDS):
        for shared, rounds in sides.items():
            rounds.append(play(model, conversations, chat, shared))
    plain, shared = (rounds[1:] for rounds in sides.values())  # the first one packs weights
    row = {"tokens read without": plain[0]["tokens"], "tokens read with": shared[0]["tokens"]}
    for part, title in (("first", "first turn"), ("all", f"{TURNS} turns")):
        ratios = sorted(a[part] / b[part] for a, b in zip(plain, shared, strict=True))
        row |= {
            f"{title}, seconds without": statistics.median(run[part] for run in plain),
            f"{title}, seconds with": statistics.median(run[part] for run in shared),
            f"{title}, ratio": statistics.median(ratios),
            f"{title}, lowest": ratios[0],
            f"{title}, highest": ratios[-1],
        }
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
