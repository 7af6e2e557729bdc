"""Training steps on real ScienceWorld transcripts against transformers and PEFT, and the gap to the machine's peak.

    python benchmarks/training_step.py

Baseline (transformers and PEFT, defaults): all transcripts of a step padded to the longest, logits of every token, and
for the critic a second pass without adapters. lit-rft: packed sequences, rows of at most 2048 tokens one by one, logits
of action tokens in chunks, features of the critic from the cache (computed in the first epoch: `cold`).
SmolLM2-135M-Instruct, LoRA r 16 on all linear layers, bf16, steps of 4 expert episodes. Alternating rounds, each side
in its own process; medians. Model FLOP utilisation counts the products of real tokens (`limits.training_flop`), against
the best rate of a bf16 matrix product in the same process; `shares` are those of operations in the time of our step.
Writes `benchmarks/results/training_step.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from typing import Any

import lightning as L
import torch
from limits import matrix_peak, shares, synchronize, training_flop
from peers import in_turns, machine, medians, peak_memory, say, show, versions, write
from timed import Clock, quiet_trainer

EPISODES, STEPS, MICRO_BATCH_TOKENS, MODEL = 4, 3, 2048, "smollm2-135m-instruct"
STAGES = ("sft", "offline_rl")


def make_loader(stage: str) -> Any:
    """Make the loader of expert episodes for both sides."""
    from lit_rft.datamodules import TrajectoryDataModule
    from lit_rft.envs.scienceworld import short_tasks

    data = TrajectoryDataModule(
        suite=short_tasks(), data_dir="data/scienceworld", batch_size=EPISODES,
        train_episodes_per_task=EPISODES * STEPS // 4,
        outcomes=stage == "offline_rl",
    )  # fmt: skip
    data.setup("fit")
    return data.train_dataloader()


def ours(name: str, model: str, loader: Any, **policy: Any) -> dict[str, float]:
    """Measure two epochs of our stage: the first fills the cache for the second."""
    steps = list(loader)
    clock = Clock()
    stage = fit(name, model, loader, clock, **policy)
    cold, warm = clock.seconds[: len(steps)], clock.seconds[len(steps) :]
    return figures(stage.policy, sum(warm), steps, cold=sum(cold))


def profiled(name: str, model: str, loader: Any, **policy: Any) -> dict[str, float]:
    """Measure the shares of operations in the second epoch."""
    stack = contextlib.ExitStack()
    shares_found: list[dict[str, float]] = []

    class Profile(L.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                shares_found.append(stack.enter_context(shares()))

    with stack:
        fit(name, model, loader, Profile(), **policy)
    return shares_found[0]


def fit(name: str, model: str, loader: Any, callback: Any, **policy: Any) -> Any:
    """Run two epochs of a stage."""
    from lit_rft.models import LoraSettings
    from lit_rft.stages import (
        BatchingSettings,
        HierarchicalSFT,
        OfflineHierarchicalRL,
        OptimizerSettings,
        PolicySettings,
    )

    trainer = quiet_trainer(callback, max_epochs=2)
    settings = PolicySettings(model, LoraSettings(16, 32, 0.0, "all-linear"), **policy)
    stage_class: Any = HierarchicalSFT if name == "sft" else OfflineHierarchicalRL
    batching = BatchingSettings(MICRO_BATCH_TOKENS, packing=True)
    stage = stage_class(settings, OptimizerSettings(1e-4), batching=batching)
    trainer.fit(stage, loader)
    return stage


def plain(name: str, model: str, loader: Any, **policy: Any) -> dict[str, float]:
    """Measure the same steps without this library."""
    from lit_rft.models import LoraSettings, load_backbone
    from lit_rft.transcripts import collate_padded

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lora = LoraSettings(16, 32, 0.0, "all-linear")
    net: Any = load_backbone(model, dtype=torch.bfloat16, lora=lora, **policy).train().to(device)
    heads = torch.nn.Linear(net.config.hidden_size, 2, device=device)
    trains = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*trains, *heads.parameters()], lr=1e-4)
    steps = list(loader)
    padded = [collate_padded(step.transcripts, 0).to(device) for step in steps]
    seconds = []
    for batch in [padded[0], *padded]:  # the first is for warm-up
        synchronize(device)
        started = time.perf_counter()
        plain_loss(name, net, heads, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return figures(net, sum(seconds[1:]), steps, cold=sum(seconds[1:]))


def plain_loss(name: str, net: Any, heads: Any, batch: Any) -> torch.Tensor:
    mask = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    mask.view(-1)[batch.utterance_tokens[batch.utterance_mask]] = True
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16):
        logits = net(input_ids=batch.input_ids).logits
        targets = batch.input_ids.masked_fill(~mask, -100)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten())
        if name == "offline_rl":
            with torch.no_grad(), net.disable_adapter():
                hidden = net.get_base_model().model(input_ids=batch.input_ids).last_hidden_state
            features = hidden.flatten(0, 1)[batch.utterance_ends].float()
            loss = loss + (heads(features) - batch.rewards[:, None]).square().mean()
    return loss


def figures(model: Any, seconds: float, steps: list[Any], cold: float) -> dict[str, float]:
    memory = peak_memory()  # of the steps only
    device = next(model.parameters()).device
    peak = matrix_peak(device)
    transcripts = [transcript for step in steps for transcript in step.transcripts]
    lengths = [len(transcript) for transcript in transcripts]
    chosen, tokens = sum(sum(transcript.action_mask) for transcript in transcripts), sum(lengths)
    utilisation = training_flop(model, lengths, chosen) / seconds / peak
    return {
        "seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds,
        "cold_tokens_per_second": tokens / cold, "peak_gb": memory, "utilisation": utilisation,
        "matrix_gflops": peak / 1e9,
    }  # fmt: skip


def compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return both sides' runs, their medians and ratios."""
    sides = {side: medians(figures) for side, figures in runs.items()}
    ratios = {
        "speed": sides["lit-rft"]["tokens_per_second"] / sides["plain"]["tokens_per_second"],
        "memory": sides["lit-rft"]["peak_gb"] / sides["plain"]["peak_gb"],
    }
    return {"runs": runs, "median": sides, "ratio": ratios}


def report(title: str, result: dict[str, Any]) -> None:
    speeds = {side: [run["tokens_per_second"] for run in side_runs] for side, side_runs in result["runs"].items()}
    print(title, {side: [round(min(v)), round(statistics.median(v)), round(max(v))] for side, v in speeds.items()})
    show(title, result["median"])
    ratio = result["ratio"]
    print(f"{ratio['speed']:.1f} times the tokens per second, {100 * ratio['memory']:.0f}% of the memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--side", choices=("lit-rft", "plain", "shares"), help="run one side only")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.side:
        side = {"lit-rft": ours, "plain": plain, "shares": profiled}[options.side]
        say(**side(options.stage, MODEL, make_loader(options.stage)))
        return
    make_loader("sft")  # collects the episodes
    settings = {"model": MODEL, "episodes": EPISODES, "steps": STEPS, "micro_batch_tokens": MICRO_BATCH_TOKENS,
                "lora_rank": 16, "target_modules": "all-linear", "precision": "bf16"}  # fmt: skip
    result: dict[str, Any] = {"machine": machine(), "versions": versions("lightning"), "settings": settings,
                              "stages": {}}  # fmt: skip
    for stage in STAGES:
        runs = in_turns(__file__, ("lit-rft", "plain"), options.rounds, "--stage", stage)
        (profile,) = in_turns(__file__, ("shares",), 1, "--stage", stage)["shares"]
        result["stages"][stage] = compare(runs) | {"shares": profile}
        report(stage, result["stages"][stage])
        print("shares of our step:", {part: f"{100 * share:.0f}%" for part, share in profile.items()})
    write("training_step", result)


if __name__ == "__main__":
    main()
