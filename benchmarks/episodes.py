"""Turns per second of model time: KV caches kept between turns against re-encoding the full history.

    python benchmarks/episodes.py
    python benchmarks/episodes.py --rounds 1 --episodes 4 --steps 5      # a short run

Both sides play the same ScienceWorld episodes with the same player, agent (two levels), simulators and prompts,
greedily; only the generator differs. The baseline passes the full histories of all waiting conversations to
transformers' `generate` at every turn, padded on the left, as GLIDER's public release does. SmolLM2-135M-Instruct in
bf16. Alternating rounds, each side in its own process; medians.

A side's model time is the time in its generator; its memory is that of its process, without simulators.
`waited_seconds` is the rest, with an idle model; `simulator_seconds` is the total time of the simulators, including
resets, mostly in parallel with the model's work on other episodes. Simulators are started before (`start_seconds`) and
kept between rounds of episodes. Writes `benchmarks/results/episodes.json`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peers import in_turns, machine, medians, peak_memory, say, show, versions, write
from rollout import left_padded

from lit_rft.agents import EpisodePlayer, HierarchicalAgent
from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.envs.scienceworld import ScienceWorldEnv
from lit_rft.envs.scienceworld.suite import SHORT_TASKS
from lit_rft.generation import Completion, ConversationGenerator, SamplingSettings
from lit_rft.generation.slots import Slots
from lit_rft.models import load_backbone, load_tokenizer
from lit_rft.transcripts import ChatFormat

NEW_TOKENS = 24
SEEN_TASKS = SHORT_TASKS


class TimedEnv(ScienceWorldEnv):
    """Records the duration of each call.

    Args:
        times: folder with a file per process.
    """

    def __init__(self, times: str, step_limit: int) -> None:
        super().__init__(step_limit, "easy")
        self._times = Path(times) / f"{os.getpid()}.txt"

    def reset(self, **arguments: Any) -> Any:
        return self._timed(super().reset, **arguments)

    def step(self, action: str) -> Any:
        return self._timed(super().step, action)

    def _timed(self, call: Any, *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments, **named)
        with self._times.open("a") as stream:
            stream.write(f"{time.perf_counter() - started}\n")
        return result


class RereadingGenerator:
    """`ConversationGenerator` without KV cache: keeps only the ids of each conversation."""

    def __init__(self, model: Any, end_of_turn_id: int, sampling: SamplingSettings, *, num_slots: int) -> None:
        self.model, self.end, self.sampling = model, end_of_turn_id, sampling
        self._history: Slots[list[int]] = Slots(num_slots)
        self.tokens_read = self.tokens_sampled = 0

    def open(self, name: str) -> int:
        return self._history.open([])

    def close(self, slot: int) -> None:
        self._history.close(slot)

    def forget(self, slot: int) -> None:
        self._history[slot] = []

    @torch.no_grad()
    def sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Completion]:
        for slot, ids in prompts.items():
            self._history[slot] += ids
        rows = [self._history[slot] for slot in prompts]
        ids, mask = left_padded(rows, self.end, self.model.device)
        out = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=self.sampling.max_new_tokens, do_sample=False,
            eos_token_id=self.end, pad_token_id=self.end,
        )  # fmt: skip
        self.tokens_read += sum(map(len, rows))
        return {
            slot: self._taken(slot, new.tolist()) for slot, new in zip(prompts, out[:, ids.shape[1] :], strict=True)
        }

    def _taken(self, slot: int, new: list[int]) -> Completion:
        finished = self.end in new
        new = new[: new.index(self.end) + 1] if finished else new
        self._history[slot] += new
        self.tokens_sampled += len(new)
        return Completion(new, [0.0] * len(new), finished)


def clocked(generator: Any) -> list[float]:
    """Record the seconds of each `sample` of a generator."""
    seconds: list[float] = []
    sample = generator.sample

    def timed(prompts: Any) -> Any:
        started = time.perf_counter()
        result = sample(prompts)
        seconds.append(time.perf_counter() - started)
        return result

    generator.sample = timed
    return seconds


def play(side: str, episodes: int, steps: int) -> None:
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    chat = ChatFormat(tokenizer)
    model = load_backbone("smollm2-135m-instruct", dtype=torch.bfloat16).eval()
    make = {"lit-rft": ConversationGenerator, "rereading": RereadingGenerator}[side]
    generator: Any = make(model, chat.end_of_turn_id, SamplingSettings(NEW_TOKENS), num_slots=2 * episodes)
    generator.sample({generator.open("warm"): tokenizer("Hello")["input_ids"]})
    generator.close(0)
    seconds, prefilled, sampled = clocked(generator), generator.tokens_read, generator.tokens_sampled
    with tempfile.TemporaryDirectory() as times:
        make_env = functools.partial(TimedEnv, times, steps)
        with EnvPool(make_env, episodes, PoolSettings(reset_timeout=600)) as pool:
            start_seconds = start(pool, jobs(episodes, steps), Path(times))
            player = EpisodePlayer(HierarchicalAgent(), pool, chat, generator)
            player.submit(jobs(episodes, steps))
            started = time.perf_counter()
            turns = sum(len(played.episode.steps) for played in player.run())
            wall = time.perf_counter() - started
        simulated = sum(float(line) for file in Path(times).iterdir() for line in file.read_text().split())
    model_seconds = sum(seconds)
    say(
        turns=turns, turns_per_second=turns / model_seconds, model_seconds=model_seconds,
        tokens_per_second=(generator.tokens_sampled - sampled) / model_seconds, peak_gb=peak_memory(),
        simulator_seconds=simulated, waited_seconds=wall - model_seconds, start_seconds=start_seconds,
        tokens_read=generator.tokens_read - prefilled, tokens_sampled=generator.tokens_sampled - sampled,
    )  # fmt: skip


def start(pool: EnvPool, first: Sequence[EpisodeSpec], times: Path) -> float:
    """Start all simulators, one per job, and return the seconds."""
    started = time.perf_counter()
    for job in first:
        pool.submit(job)
    while pool.outstanding:
        for event in pool.wait():
            pool.finish(event.worker)
    for file in times.iterdir():
        file.unlink()
    return time.perf_counter() - started


def jobs(episodes: int, steps: int) -> list[EpisodeSpec]:
    return [
        EpisodeSpec(f"{n}", task, options={"task": task, "variation": n}, step_limit=steps)
        for n, task in zip(range(episodes), itertools.cycle(SEEN_TASKS), strict=False)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--side", choices=("lit-rft", "rereading"), help="run one side only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=16, help="at the same time, each with a simulator (0.5 GB)")
    parser.add_argument("--steps", type=int, default=20, help="of each episode")
    options = parser.parse_args()
    # the simulators' processes import `TimedEnv` from this folder
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    if options.side:
        import episodes  # not as __main__, which the simulators' processes cannot import

        episodes.play(options.side, options.episodes, options.steps)
        return
    info = machine()
    sizes = ("--episodes", str(options.episodes), "--steps", str(options.steps))
    runs = in_turns(__file__, ("lit-rft", "rereading"), options.rounds, *sizes)
    sides = {side: medians(figures) for side, figures in runs.items()}
    ratio = sides["lit-rft"]["turns_per_second"] / sides["rereading"]["turns_per_second"]
    settings = {"episodes": options.episodes, "steps": options.steps, "new_tokens": NEW_TOKENS, "precision": "bf16"}
    result = {"machine": info, "versions": versions("scienceworld"), "settings": settings, "runs": runs,
              "median": sides, "ratio": ratio}  # fmt: skip
    write("episodes", result)
    show(f"{options.episodes} episodes at the same time", sides)
    print(f"{ratio:.1f} times the turns per second of model time")


if __name__ == "__main__":
    main()
