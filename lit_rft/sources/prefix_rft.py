"""Prefix-RFT: prefixes of traces, continued by the policy (Huang et al. 2025, arXiv 2507.01679)."""

import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_rft._seeds import resolve_seed
from lit_rft.batches import Prompt, PromptBatch
from lit_rft.models.processes import distinct_names, sum_numbers
from lit_rft.rollouts import CompletionSource, GroupSource, Policy, Rollout
from lit_rft.sources.wrapped import WrappedSource


@dataclass(frozen=True)
class TracePrefixes:
    r"""Replace the trace of a group by a prefix of it that the policy continues.

        y = ( y*_{<=L}, continuation ~ pi(. | prompt, y*_{<=L}) )
        L = min( floor(l |y*|), |y*| - 1 ),     l ~ U(low, high)

    `low` falls from `high` to `low_end` along half a cosine in the first `decay_steps` optimiser steps: at first nearly
    the full trace is given, later any part of it. The rollout is off-policy; behaviour log-probabilities are known of
    its continuation only. Its reward is that of the complete text. A prompt without traces has a group of its own
    completions. `lit_rft.losses.PrefixRFT` is the loss; needs `objective.traces_per_group`: 1, and no term that
    imitates traces (`sft_coef`, `imitated_traces`): continuations are no examples.

    Args:
        high: highest share of a trace, in [0, 1].
        low_end: lowest share after the decay, in [0, high].
        decay_steps: optimiser steps, >= 1.
        seed: of the choice of trace and length; null for the run's `seed_everything`.

    Raises:
        ValueError: a setting is out of its range, or the stage has no traces in its groups or no completions.
    """

    high: float = 0.95
    low_end: float = 0.05
    decay_steps: int = 200
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low_end <= self.high <= 1 or self.decay_steps < 1:
            raise ValueError(
                "expected 0 <= source.low_end <= source.high <= 1 and source.decay_steps >= 1, got "
                f"{self.low_end}, {self.high} and {self.decay_steps}"
            )

    def low(self, step: int) -> float:
        """Return the lowest share of a trace after a number of optimiser steps."""
        remaining = (1 + math.cos(math.pi * min(step / self.decay_steps, 1.0))) / 2
        return self.low_end + (self.high - self.low_end) * remaining

    def __call__(self, source: GroupSource) -> WrappedSource:
        innermost: Any = source
        while isinstance(innermost, WrappedSource):
            innermost = innermost.source
        if not isinstance(innermost, CompletionSource):
            raise ValueError("TracePrefixes needs completions of prompts, not episodes: use it with MixedPolicyGRPO")
        if source.traces_per_group != 1:
            raise ValueError(
                "TracePrefixes puts one continued prefix into each group: set objective.traces_per_group to 1, got "
                f"{source.traces_per_group}"
            )
        return _PrefixSource(source, innermost, self)


class _PrefixSource(WrappedSource):
    continues_traces = True

    def __init__(self, source: GroupSource, completions: CompletionSource, settings: TracePrefixes) -> None:
        super().__init__(source)
        self.completions, self.settings, self.seed = completions, settings, resolve_seed(settings.seed)

    def __call__(self, policy: Policy, batch: PromptBatch) -> list[Rollout]:
        """Return the groups, with continued prefixes in place of traces; all processes must call this."""
        prompts = list(batch.prompts)
        chosen = {index: self._prefix(policy, prompt) for index, prompt in enumerate(prompts) if prompt.traces}
        names = distinct_names([f"{policy.occasion}/{prompts[index].problem.id}/prefix" for index in chosen])
        texts = [prompts[index].ids + prefix for index, (prefix, _) in chosen.items()]
        named = list(zip(names, texts, strict=True))
        inner = self.completions
        with policy.phases.measure("rollout"):
            groups = inner.sampler(
                policy, named, [1] * len(named), inner.sampling, seed=inner.seed, max_concurrent=inner.max_concurrent
            )
        for (index, (prefix, _)), (continuation,) in zip(chosen.items(), groups, strict=True):
            prompts[index] = self._continued(policy, prompts[index], prefix, continuation.ids, continuation.log_probs)
        self._count(policy, list(chosen.values()))
        return self.source(policy, PromptBatch(prompts, batch.sources))

    def _prefix(self, policy: Policy, prompt: Prompt) -> tuple[list[int], int]:
        """Return the prefix of one of a prompt's traces, and the length of the trace."""
        rng = random.Random(f"{self.seed}/{policy.occasion}/{prompt.problem.id}")  # in any process the same
        trace = rng.choice(prompt.traces)
        share = rng.uniform(self.settings.low(policy.step), self.settings.high)
        return trace[: min(int(share * len(trace)), len(trace) - 1)], len(trace)

    def _continued(
        self, policy: Policy, prompt: Prompt, prefix: Sequence[int], ids: Sequence[int], log_probs: Sequence[float]
    ) -> Prompt:
        """Return a prompt whose only trace is a continued prefix, at most as long as a completion."""
        room = max(1, self.completions.sampling.max_new_tokens - len(prefix))
        ids = [*prefix, *ids[:room]]
        log_probs = [math.nan] * len(prefix) + list(log_probs[:room])
        return dataclasses.replace(
            prompt, traces=[ids], trace_texts=[policy.chat.text(ids)], trace_log_probs=[log_probs]
        )

    def _count(self, policy: Policy, chosen: Sequence[tuple[list[int], int]]) -> None:
        shares = [len(prefix) / length for prefix, length in chosen]
        sums = sum_numbers({"share": sum(shares), "number": float(len(shares))}, policy.device)
        self.more_metrics = {
            "continued_prefixes": sums["number"],
            "prefix_share": sums["share"] / torch.clamp_min(sums["number"], 1),
        }
