"""Episodes of the demo with and without drafts by look-up: turns per second, and tokens per pass.

    python benchmarks/lookup_decoding.py runs/demo        # after `make demo`

The trained policy reads the observations of the demo's recorded episodes, and answers greedily, as in the demo. Rounds
with and without `lookup_drafts`, in turns, for several numbers of conversations; only sampling is timed. Writes
`benchmarks/results/lookup_decoding.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from experiment import RESULTS, environment
from peers import ratios, show, without_and_with
from rich.console import Console

from lit_rft._files import write_json
from lit_rft.agents import FlatAgent
from lit_rft.episodes import read_episodes
from lit_rft.generation import ConversationGenerator, SamplingSettings
from lit_rft.models import load_backbone, load_tokenizer
from lit_rft.transcripts import ChatFormat

MODEL, ROWS, TURNS, ROUNDS = "smollm2-135m-instruct", (1, 4, 8, 16, 32), 8, 3
FILE = RESULTS / "lookup_decoding.json"


def load_policy(run: Path) -> Any:
    """Load the default model with the adapter of a run, merged."""
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(load_backbone(MODEL, dtype=torch.float32), str(run / "adapter"))
    return model.merge_and_unload().to(torch.bfloat16).eval()


def read_prompts(run: Path, chat: ChatFormat) -> list[list[list[int]]]:
    """Return the prompts of each recorded episode with enough turns, those before its first turns."""
    agent, conversations = FlatAgent(), []
    for episode in read_episodes(run / "episodes" / "before.jsonl"):  # all of them are long
        (transcript,) = agent.transcripts(episode, chat)
        ends = [0, *(end + 1 for end in transcript.utterance_ends)]
        parts = [transcript.input_ids[a:b] for a, b in zip(ends, transcript.utterance_starts, strict=False)]
        if len(parts) >= TURNS:
            conversations.append(parts[:TURNS])
    return conversations


def play(model: Any, conversations: Sequence[list[list[int]]], chat: ChatFormat) -> dict[str, float]:
    """Sample all turns of some conversations; return seconds, those of the first turn, tokens and passes."""
    generator = ConversationGenerator(model, chat.end_ids, SamplingSettings(16), num_slots=len(conversations))
    slots = [generator.open(str(number)) for number in range(len(conversations))]
    started, first = time.perf_counter(), 0.0
    for turn in range(TURNS):
        generator.sample({slot: parts[turn] for slot, parts in zip(slots, conversations, strict=True)})
        first = first or time.perf_counter() - started
    return {
        "seconds": time.perf_counter() - started, "first": first,
        "tokens": generator.tokens_sampled, "read": generator.tokens_read, "passes": generator.passes + TURNS,
    }  # fmt: skip


def compare(model: Any, conversations: Sequence[list[list[int]]], chat: ChatFormat) -> dict[str, float]:
    """Play rounds on both sides in turns; return medians, and the lowest and the highest ratio of seconds."""
    plain, drafted = without_and_with(model, "lookup_drafts", lambda: play(model, conversations, chat), ROUNDS)
    return {
        **seconds(plain, drafted),
        "tokens per pass without": plain[0]["tokens"] / plain[0]["passes"] / len(conversations),
        "tokens per pass with": drafted[0]["tokens"] / drafted[0]["passes"] / len(conversations),
    }


def seconds(
    plain: Sequence[dict[str, float]], fast: Sequence[dict[str, float]], key: str = "seconds"
) -> dict[str, float]:
    """Return the median seconds of both sides, and their ratios."""
    without, within = ([figures[key] for figures in side] for side in (plain, fast))
    medians = {"seconds without": statistics.median(without), "seconds with": statistics.median(within)}
    return medians | ratios(without, within)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=Path, help="folder of a demo")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="conversations at the same time")
    options = parser.parse_args()
    chat = ChatFormat(load_tokenizer(MODEL))
    model, conversations = load_policy(options.run), read_prompts(options.run, chat)
    result: dict[str, Any] = {}
    for rows in options.rows:
        with Console().status(f"{rows} conversations, {1 + ROUNDS} rounds"):
            result[f"{rows} rows"] = compare(model, conversations[:rows], chat)
    write_json(FILE, {"rows": result, "turns": TURNS, **environment()})
    show("drafts by look-up", result)


if __name__ == "__main__":
    main()
