"""Runs as they lie on disk, with curves, rollouts and settings, made without a model."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

from lit_rft.records import Conversation, GroupRecord, RolloutRecord, RolloutWriter, Turn
from lit_rft.testing import make_episode

CONFIG = """# lit-rft 0.1.0
seed_everything: {seed}
trainer:
  default_root_dir: {name}
model:
  class_path: lit_rft.stages.MixedPolicyGRPO
  init_args:
    optimizer:
      learning_rate: {rate}
"""
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"
WORDS = ["So", " the", " sum", " is", " ", "4", "2", ",", " because", " 1", "7", " +", " 2", "5", " =", ".", "\n"]


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    steps: int = 20,
    groups: int = 2,
    members: int = 4,
    tokens: int = 12,
    episodes: bool = True,
) -> Path:
    """Write a run of `steps * groups * members` rollouts, and as many groups of episodes again if wanted."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, name=folder.name, rate=1e-6 * (seed + 1)))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11.7", "packages": {"torch": "2.13.0"}}))
    write_curves(folder / "tensorboard", seed, steps)
    writer = RolloutWriter(folder / "rollouts" / "train.jsonl", 1.0, 10**10)
    for step in range(steps):
        batch = [problem_group(rng, step, number, members, tokens, steps) for number in range(groups)]
        batch += [episode_group(rng, step, groups)] if episodes else []
        writer.append(batch)
    writer.close()
    return folder


def write_curves(folder: Path, seed: int, steps: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    """Write curves against the optimiser steps after each batch, as runs do; rollouts have those before it."""
    rng = random.Random(seed + 100)
    with SummaryWriter(str(folder)) as board:
        for step in range(steps):
            reach = 1 - math.exp(-3 * step / max(steps, 1))
            board.add_scalar("train/loss", 1 - reach + 0.1 * rng.gauss(0, 1), step + 1)
            board.add_scalar("train/reward", (0.2 + 0.05 * seed + 0.6 * reach) + 0.08 * rng.gauss(0, 1), step + 1)
            board.add_scalar("train/completion_length", 180 - 60 * reach + 8 * rng.gauss(0, 1), step + 1)
            board.add_scalar("train/clip_fraction", 0.02 + 0.01 * rng.random(), step + 1)
            board.add_scalar("train/learning_rate", 2e-4, step + 1)
            board.add_scalar("perf/tokens_per_second", 4200 + 150 * rng.gauss(0, 1), step + 1)
            if step % 5 == 4:
                board.add_scalar("val/average", 0.3 + 0.4 * reach + 0.02 * rng.gauss(0, 1), step + 1)


def problem_group(rng: random.Random, step: int, number: int, members: int, tokens: int, steps: int) -> GroupRecord:
    a, b = rng.randint(10, 60), rng.randint(10, 60)
    rewards = [float(rng.random() < 0.3 + 0.5 * step / steps) for _ in range(members - 1)] + [1.0]
    mean = sum(rewards) / members
    rollouts = []
    for member, reward in enumerate(rewards):
        trace = member == members - 1
        answer = a + b if reward else a + b + rng.randint(1, 9)
        answer_tokens = [" The", " answer", " is", *f" {answer}", "."]
        texts = [rng.choice(WORDS) for _ in range(max(0, tokens - len(answer_tokens)))] + answer_tokens
        texts = texts[: tokens - 1] + ["<|im_end|>"]
        sampled = [round(-rng.expovariate(2.5), 4) for _ in texts]
        old = [] if trace else sampled
        update = [round(value + 0.15 * rng.gauss(0, 1), 4) for value in sampled]
        clipped = [k for k, (x, y) in enumerate(zip(update, sampled, strict=True)) if abs(x - y) > 0.25]
        prompt = f"<|im_start|>user\nWhat is {a} + {b}?<|im_end|>\n<|im_start|>assistant\n"
        conversation = Conversation(
            "completion", [Turn(prompt, texts)], [] if trace else sampled, old, update, clipped=[] if trace else clipped
        )
        parts = {"math": reward, "length": round(rng.random(), 2)}
        rollouts.append(RolloutRecord(
            f"sum-{step}-{number}", "".join(texts[:-1]), trace, rng.random() > 0.1, reward, parts,
            round(reward - mean, 4), [conversation], str(a + b),
        ))  # fmt: skip
    return GroupRecord("train", step, step, 0, number, "chain_sum", rollouts)


def episode_group(rng: random.Random, step: int, number: int) -> GroupRecord:
    rollouts = []
    for member in range(3):
        episode = make_episode(3 * step + member, 3 + member)
        episode.id = f"walk/{step}/{member}"
        if member == 1:
            episode.task_description = HOSTILE
            episode.steps[0].observation = HOSTILE
        reward = episode.outcome.score
        conversations: list[Any] = []
        for level, offset in (("high", 0), ("low", 1)):
            turns = [
                Turn(
                    f"{s.observation}\n",
                    [*re.findall(r"\s?\S+", s.action), "<|im_end|>"],
                )
                for k, s in enumerate(episode.steps[offset:])
            ]
            count = sum(len(turn.tokens) for turn in turns)
            sampled = [round(-rng.expovariate(3), 4) for _ in range(count)]
            advantages = [round(rng.gauss(0, 1), 4) for _ in range(count)]
            entropy = [round(rng.expovariate(1), 4) for _ in range(count)]
            conversations.append(Conversation(level, turns, sampled, [], sampled, advantages, entropy))
        text = HOSTILE if member == 1 else "\n".join(s.action for s in episode.steps)
        rollouts.append(RolloutRecord(
            episode.id, text, member == 2, True, reward, {}, 0.0, conversations, "", episode
        ))  # fmt: skip
    return GroupRecord("train", step, step, 0, number, "walk", rollouts)
