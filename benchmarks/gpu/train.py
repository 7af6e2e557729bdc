"""Optimiser steps of SFT and GRPO in the shapes of Qwen2.5-0.5B and 1.5B: tokens per second, MFU, peak memory.

    python benchmarks/gpu/train.py --output runs/gpu

LoRA of rank 16 on all linear layers, or all weights; rows of 2,048 or 16,384 tokens. SFT uses 32,768 tokens per
optimiser step; GRPO uses groups of 8 completions, as many as fit, but at least one, so that
its step has about 120,000 tokens at 16,384 tokens per row. SFT baseline: transformers and PEFT with their defaults,
with sdpa and, if installed, flash attention. The first step compiles and allocates; the second one counts. An item that
runs out of memory is repeated with gradient checkpointing; where 80 GB are known not to suffice, there is no first try.

FLOP are those that the tokens need (`limits.training_flop`), a prompt once for all its completions. `mfu` is against
the best bf16 matrix product measured here, `mfu_of_989` against the data sheet's 989 TFLOP/s of an H100.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import DEVICE, Kit, begin, environment, has_flash_attention  # first: it adds the shared modules to the path

import torch  # isort: skip
from limits import matrix_peak, synchronize, training_flop
from made_up import END, make_model, make_problems
from peers import peak_memory
from timed import Clock, quiet_trainer

from lit_rft.agents import FlatAgent
from lit_rft.batches import Prompt
from lit_rft.datamodules import PromptLoader, StepLoader
from lit_rft.generation import Completion
from lit_rft.models import LoraSettings, load_backbone, load_tokenizer
from lit_rft.rollouts import CompletionSampler
from lit_rft.stages import (
    BatchingSettings,
    HierarchicalSFT,
    MixedPolicyGRPO,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.transcripts import PromptFormat, Transcript, collate_padded

SFT, PLAIN, GRPO, GROUP, STEPS = "sft", "transformers", "grpo", 8, 2
SHORT, LONG = 0, -1  # of a size's rows
# sides, LoRA, row: most informative first, a time limit loses the rest
ORDER: tuple[tuple[tuple[str, ...], bool, int], ...] = (
    ((SFT, PLAIN), True, LONG),
    ((SFT, PLAIN, GRPO), True, SHORT),
    ((SFT, PLAIN, GRPO), False, SHORT),
    ((SFT,), False, LONG),
    ((GRPO,), True, LONG),
    ((GRPO,), False, LONG),
)
FULL: dict[str, Any] = {"shapes": ("qwen2.5-0.5b", "qwen2.5-1.5b"), "rows": (2048, 16384), "step_tokens": 32768}
TINY: dict[str, Any] = {"shapes": ("tiny",), "rows": (32,), "step_tokens": 64}


def make_transcripts(number: int, length: int, vocabulary: int) -> list[Transcript]:
    """Make transcripts of random tokens: an eighth of them a prompt, the rest one utterance."""
    randoms = random.Random(0)
    transcripts = []
    for n in range(number):
        ids = [randoms.randrange(3, vocabulary) for _ in range(length)]
        transcript = Transcript("flat", END, f"t{n}")
        transcript.append_prompt(ids[: length // 8])
        transcript.append_utterance([*ids[length // 8 : -1], END])
        transcripts.append(transcript)
    return transcripts


class GivenSampler(CompletionSampler):
    """Returns the same random completions in each step, in place of sampling.

    Args:
        number: completions.
        length: tokens of each.
        vocabulary: number of token ids to draw from.
    """

    def __init__(self, number: int, length: int, vocabulary: int) -> None:
        super().__init__()
        randoms = torch.Generator().manual_seed(0)
        ids = torch.randint(3, vocabulary, (number, length - 1), generator=randoms)
        self._completions = [Completion([*row, END], [-1.0] * length, True) for row in ids.tolist()]

    def __call__(self, policy: Any, prompts: Any, sizes: Sequence[int], *_: Any, **__: Any) -> list[list[Completion]]:
        completions = iter(self._completions)
        return [[next(completions) for _ in range(size)] for size in sizes]


class GivenCompletions(MixedPolicyGRPO):
    """GRPO on random completions of one length, to time only the update.

    Args:
        prompts: groups per optimiser step.
        completion: tokens per completion.
        vocabulary: number of token ids to draw from.
    """

    def __init__(
        self, policy: PolicySettings, optimizer: OptimizerSettings, *, prompts: int, completion: int, vocabulary: int,
        micro_batch_tokens: int = 16384,
    ) -> None:  # fmt: skip
        super().__init__(
            policy, optimizer, ObjectiveSettings(GROUP, 0, entropy_coef=0.0), reward=_rewards,
            batching=BatchingSettings(micro_batch_tokens),
        )  # fmt: skip
        self._number = prompts
        self.source.sampler = GivenSampler(GROUP * prompts, completion, vocabulary)

    def loader(self, model: Path, prompt: int) -> PromptLoader:
        """Make prompts of this many characters, all of them in each batch."""
        form = PromptFormat(load_tokenizer(str(model)))
        problems = make_problems(self._number, prompt)
        prompts = [Prompt(problem, form.prompt_ids(problem.prompt), [], [], []) for problem in problems]
        return PromptLoader(prompts, batch_size=self._number)


def _rewards(completions: Sequence[str], rows: Any) -> list[float]:
    return [float(n % 2) for n in range(len(completions))]


def settings(model: Path, lora: bool, checkpointing: bool) -> PolicySettings:
    adapters = LoraSettings(16, 32, 0.0, "all-linear") if lora else None
    flash = "flash_attention_2" if has_flash_attention() else None
    return PolicySettings(str(model), adapters, attention=flash, gradient_checkpointing=checkpointing)


def ours(kind: str, model: Path, lora: bool, row: int, step_tokens: int, checkpointing: bool) -> dict[str, Any]:
    """Measure the last optimiser step of a stage."""
    clock, number, vocabulary = Clock(), max(1, step_tokens // row), _vocabulary(model)
    optimizer, policy = OptimizerSettings(1e-5), settings(model, lora, checkpointing)
    micro_batch_tokens, prompt = max(row, step_tokens // 2), row // 8
    lengths, reused, facts = [row] * number, [], {}
    stage: Any
    loader: Iterable[Any]
    if kind == SFT:
        loader = StepLoader([[t] for t in make_transcripts(number, row, vocabulary)], batch_size=number)
        batching = BatchingSettings(micro_batch_tokens, packing=has_flash_attention())
        stage = HierarchicalSFT(policy, optimizer, agent=FlatAgent(), batching=batching)
    else:
        stage = GivenCompletions(policy, optimizer, prompts=max(1, number // GROUP), completion=row - prompt,
                                 vocabulary=vocabulary, micro_batch_tokens=micro_batch_tokens)  # fmt: skip
        loader = stage.loader(model, prompt)
        (batch,) = list(loader)
        prompts = [len(prompt.ids) for prompt in batch.prompts]
        lengths = [length + row - prompt for length in prompts for _ in range(GROUP)]
        reused = [length for length in prompts for _ in range(GROUP - 1)]
    quiet_trainer(clock, max_steps=STEPS, max_epochs=-1).fit(stage, loader)
    if kind == GRPO:  # False: the model fell back to a prompt for each completion
        facts = {"shares_prompts": stage.update.split.share_prompts}
    return figures(stage.policy, clock.seconds, lengths, len(lengths) * (row - prompt), reused) | facts


def plain(model: Path, lora: bool, row: int, step_tokens: int, checkpointing: bool, attention: str) -> dict[str, Any]:
    """Measure the same with transformers and PEFT: rows of one sequence, logits of all tokens, AdamW."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if lora else torch.float32
    adapters = LoraSettings(16, 32, 0.0, "all-linear") if lora else None
    net: Any = load_backbone(
        str(model), dtype=dtype, lora=adapters, attention=attention, gradient_checkpointing=checkpointing
    )
    net.train().to(DEVICE)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-5)
    number = step_tokens // row
    transcripts = make_transcripts(number, row, _vocabulary(model))
    per_pass = max(1, step_tokens // 2 // row)
    batches = [collate_padded(transcripts[n : n + per_pass], 0).to(DEVICE) for n in range(0, number, per_pass)]
    seconds = []
    for _ in range(STEPS):
        synchronize(DEVICE)
        started = time.perf_counter()
        for batch in batches:
            mask = torch.zeros_like(batch.input_ids, dtype=torch.bool)
            mask.view(-1)[batch.utterance_tokens[batch.utterance_mask]] = True
            with torch.autocast(DEVICE.type, torch.bfloat16):
                labels = batch.input_ids.masked_fill(~mask, -100)
                loss = net(input_ids=batch.input_ids, labels=labels).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(DEVICE)
        seconds.append(time.perf_counter() - started)
    return figures(net, seconds, [row] * number, number * (row - row // 8))


_peak: list[float] = []


def figures(
    net: Any, seconds: Sequence[float], lengths: Sequence[int], chosen: int, reused: Sequence[int] = ()
) -> dict[str, Any]:
    """Compute the speeds of the last step.

    Args:
        net: the model.
        seconds: of each step.
        lengths: of all sequences.
        chosen, reused: see `limits.training_flop`.
    """
    memory = peak_memory()
    if not _peak:
        _peak.append(matrix_peak(DEVICE))
    step, tokens = seconds[-1], sum(lengths) - sum(reused)
    rate = training_flop(net, lengths, chosen, reused) / step
    return {
        "step_seconds": step, "first_step_seconds": seconds[0], "tokens": tokens, "tokens_per_second": tokens / step,
        "tflop_per_second": rate / 1e12, "mfu": rate / _peak[0], "mfu_of_989": rate / 989e12, "peak_gb": memory,
        "peak_tflops": _peak[0] / 1e12,
    }  # fmt: skip


def _vocabulary(model: Path) -> int:
    from made_up import SHAPES

    return SHAPES[model.name]["vocab_size"]


@dataclass(frozen=True)
class Case:
    """One item: a side, or an attention implementation of transformers, and its work."""

    side: str
    shape: str
    lora: bool
    row: int

    @property
    def name(self) -> str:
        side = {SFT: "SFT", GRPO: "GRPO update"}.get(self.side, f"SFT by transformers, {self.side}")
        return f"{side}, {self.shape}, {'LoRA' if self.lora else 'all weights'}, {self.row} tokens a row"

    @property
    def is_too_large(self) -> bool:
        """True if 80 GB are known not to suffice without gradient checkpointing."""
        largest = self.shape == "qwen2.5-1.5b" and self.row == 16384
        return largest and (not self.lora or self.side not in (SFT, GRPO))

    def run(self, folder: Path, step_tokens: int, checkpointing: bool) -> dict[str, Any]:
        work = (folder / self.shape, self.lora, self.row, step_tokens, checkpointing)
        return ours(self.side, *work) if self.side in (SFT, GRPO) else plain(*work, self.side)


def cases(work: dict[str, Any]) -> list[Case]:
    """Return all items, in order."""
    kernels = ("sdpa", "flash_attention_2") if has_flash_attention() else ("sdpa",)
    all_cases = [
        Case(side, shape, lora, work["rows"][row])
        for sides, lora, row in ORDER
        for shape in work["shapes"]
        for name in sides
        for side in (kernels if name == PLAIN else (name,))
    ]
    return list(dict.fromkeys(all_cases))  # both rows of a tiny size are equal


def measure(kit: Kit, case: Case, folder: Path, step_tokens: int) -> None:
    """Measure an item; with gradient checkpointing if memory is insufficient without."""
    at_least = 0 if kit.tiny else 30 if case.side == GRPO and case.row == 16384 else 10
    for checkpointing in (True,) if case.is_too_large else (False, True):
        name = case.name + (", gradient checkpointing" if checkpointing else "")
        kit.measure(name, lambda checkpointing=checkpointing: case.run(folder, step_tokens, checkpointing), at_least)
        if "out of memory" not in kit.figures["items"][name].get("failed", ""):
            return


def main() -> None:
    kit, _ = begin("train", __doc__)
    work = TINY if kit.tiny else FULL
    kit.figures |= environment() | {"settings": {**work, "lora_rank": 16, "precision": "bf16", "group": GROUP}}
    kit.write()
    with tempfile.TemporaryDirectory() as folder:
        for shape in work["shapes"]:
            make_model(shape, Path(folder))
        for case in cases(work):
            measure(kit, case, Path(folder), work["step_tokens"])
    kit.finish()


if __name__ == "__main__":
    main()
