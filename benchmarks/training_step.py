"""Training steps on real ScienceWorld transcripts against the plain way, and how far from the machine's limit they are.

    python benchmarks/training_step.py

The plain way: all transcripts of a step padded to the longest, logits of every token, and for the critic a second pass
by the model without its adapters. Ours: micro-batches of similar length, logits of action tokens in chunks, features of
the critic out of the cache (a first epoch has to make them: `cold`). SmolLM2-135M-Instruct, LoRA r 16 on all linear
layers, bf16, steps of 4 expert episodes. Each side is in a process of its own, in turns; medians. Model FLOP
utilisation counts four FLOP for each weight of the backbone and real token (frozen weights have no gradient), against
the best rate of a bf16 matrix product in the same process. Writes `benchmarks/results/training_step.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from peers import in_turns, machine, medians, peak_memory, say, show, versions, write

EPISODES, STEPS, MICRO_BATCH_TOKENS = 4, 3, 1024
STAGES = ("sft", "offline_rl")


def make_data(stage: str) -> Any:
    from lit_rft.datamodules import TrajectoryDataModule

    data = TrajectoryDataModule(
        train_variations=EPISODES * STEPS // 4, batch_size=EPISODES, micro_batch_tokens=MICRO_BATCH_TOKENS,
        outcomes=stage == "offline_rl",
    )  # fmt: skip
    data.setup("fit")
    return data


def matrix_peak() -> float:
    """FLOP a second of a bf16 matrix product, the best of some sizes."""
    best = 0.0
    for size in (1024, 2048):
        a, b = torch.randn(size, 1536).bfloat16(), torch.randn(1536, 1536).bfloat16()
        a @ b
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(5):
                a @ b
            best = max(best, 5 * 2 * size * 1536 * 1536 / (time.perf_counter() - started))
    return best


def ours(name: str) -> None:
    import lightning as L

    from lit_rft.models import LoraSettings
    from lit_rft.stages import HierarchicalSFT, OfflineHierarchicalRL, OptimizerSettings, PolicySettings

    seconds: list[float] = []

    class Clock(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            seconds.append(time.perf_counter() - self.started)

    L.seed_everything(0, verbose=False)
    policy = PolicySettings("smollm2-135m-instruct", LoraSettings(16, 32, 0.0, "all-linear"))
    make = HierarchicalSFT if name == "sft" else OfflineHierarchicalRL
    trainer = L.Trainer(
        max_epochs=2, precision="bf16-mixed", accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, callbacks=[Clock()],
    )  # fmt: skip
    loader = make_data(name).train_dataloader()
    tokens = sum(batch.num_tokens for batch in loader)
    trainer.fit(make(policy, OptimizerSettings(1e-4)), loader)
    report(name, sum(seconds[STEPS:]), tokens, cold=sum(seconds[:STEPS]))


def plain(name: str) -> None:
    from lit_rft.models import LoraSettings, load_backbone
    from lit_rft.models.backbone import leave_casting_to_autocast
    from lit_rft.transcripts import collate_padded

    torch.manual_seed(0)
    lora = LoraSettings(16, 32, 0.0, "all-linear")
    model: Any = load_backbone("smollm2-135m-instruct", dtype=torch.bfloat16, lora=lora).train()
    leave_casting_to_autocast(model)
    heads = torch.nn.Linear(576, 2)
    trains = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*trains, *heads.parameters()], lr=1e-4)
    batches = [
        collate_padded([t for micro in step.micro_batches for t in micro.transcripts], 0)
        for step in make_data(name).train_dataloader()
    ]
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        mask = torch.zeros_like(batch.input_ids, dtype=torch.bool)
        mask.view(-1)[batch.utterance_tokens[batch.utterance_mask]] = True
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch.input_ids).logits
            targets = batch.input_ids.masked_fill(~mask, -100)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten())
            if name == "offline_rl":
                with torch.no_grad(), model.disable_adapter():
                    hidden = model.get_base_model().model(input_ids=batch.input_ids).last_hidden_state
                features = hidden.flatten(0, 1)[batch.utterance_ends].float()
                loss = loss + (heads(features) - batch.rewards[:, None]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    tokens = sum(batch.num_tokens for batch in batches)
    report(name, sum(seconds), tokens, cold=sum(seconds))


def report(name: str, seconds: float, tokens: int, cold: float) -> None:
    weights = 134_515_008 - 28_311_552  # SmolLM2-135M without its embedding, which is no product
    peak = matrix_peak()
    say(
        seconds=seconds, tokens=tokens, tokens_per_second=tokens / seconds, cold_tokens_per_second=tokens / cold,
        peak_gb=peak_memory(), utilisation=4 * weights * tokens / seconds / peak, matrix_gflops=peak / 1e9,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--side", choices=("lit-rft", "plain"), help="run one side only")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.side:
        {"lit-rft": ours, "plain": plain}[options.side](options.stage)
        return
    make_data("sft")  # collects the episodes
    info = machine()
    result: dict[str, Any] = {"machine": info, "versions": versions("lightning"), "stages": {}}
    for stage in STAGES:
        runs = in_turns(__file__, ("lit-rft", "plain"), options.rounds, "--stage", stage)
        sides = {side: medians(found) for side, found in runs.items()}
        ratios = {
            "speed": sides["lit-rft"]["tokens_per_second"] / sides["plain"]["tokens_per_second"],
            "memory": sides["lit-rft"]["peak_gb"] / sides["plain"]["peak_gb"],
        }
        speeds = {side: [run["tokens_per_second"] for run in found] for side, found in runs.items()}
        print(stage, {side: [round(min(v)), round(statistics.median(v)), round(max(v))] for side, v in speeds.items()})
        result["stages"][stage] = {"runs": runs, "median": sides, "ratio": ratios}
        show(stage, sides)
        print(f"{ratios['speed']:.1f} times the tokens a second, {100 * ratios['memory']:.0f}% of the memory")
    write("training_step", result)


if __name__ == "__main__":
    main()
