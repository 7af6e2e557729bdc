"""ReLIFT: imitation of the prompts that all completions fail, in between (Ma et al. 2025, arXiv 2506.07527)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_rft.models.processes import all_gather_objects, global_index, global_rank, world_size
from lit_rft.rollouts import GroupSource, Policy, Rollout
from lit_rft.rollouts.replay import transcript_from_plain, transcript_to_plain
from lit_rft.sources.wrapped import WrappedSource, num_groups, warn_of_empty_buffer


@dataclass(frozen=True)
class ReLIFT:
    """Collect the traces of prompts whose completions all failed, and imitate them once there are enough.

    Needs traces outside the groups: `objective: {traces_per_group: 0, sft_coef: 1.0}`, or `imitated_traces: 1` and a
    loss with an imitation term; a stage without them is refused when it is made. Departure: the collected traces enter
    the optimiser step in which their number is reached, beside reinforcement, in place of a step of their own.

    Args:
        size: traces to imitate together, over all processes, >= 1; a multiple of it if a batch adds more.
        max_reward: highest reward of a failed completion.
    """

    size: int = 64
    max_reward: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"source.size must be >= 1, got {self.size}")
        if math.isnan(self.max_reward):
            raise ValueError(f"source.max_reward must be a number, got {self.max_reward}")

    def __call__(self, source: GroupSource) -> WrappedSource:
        if source.imitated_traces < 1:
            raise ValueError(
                "ReLIFT imitates traces outside the groups: set objective.traces_per_group to 0 and sft_coef to 1.0, "
                f"or imitated_traces to 1 with a loss that imitates, got imitated_traces={source.imitated_traces}"
            )
        return _HardestSource(source, self)


class _HardestSource(WrappedSource):
    def __init__(self, source: GroupSource, settings: ReLIFT) -> None:
        super().__init__(source)
        self.settings = settings
        self.buffer: list[dict[str, Any]] = []  # the same in all processes

    def __call__(self, policy: Policy, batch: Any) -> list[Rollout]:
        """Return the rollouts, with imitated traces only if enough are collected; all processes must call this."""
        rollouts = self.source(policy, batch)
        sampled = [rollout for rollout in rollouts if rollout.counts_in_baseline]
        tried = {r.group for r in sampled if not r.off_policy}  # none of a group is sampled if its environments fail
        solved = {r.group for r in sampled if not r.off_policy and r.reward > self.settings.max_reward}
        failed = [
            (global_index(r.group), _to_plain(r))
            for r in rollouts
            if not r.counts_in_baseline and r.group in tried - solved
        ]
        every = sorted((item for share in all_gather_objects(failed) for item in share), key=lambda item: item[0])
        self.buffer += [trace for _, trace in every]
        number = len(self.buffer) - len(self.buffer) % self.settings.size  # else it grows where a batch adds more
        released, self.buffer = self.buffer[:number], self.buffer[number:]
        total = sum(all_gather_objects(num_groups(batch)))
        counts = {"hard_traces": len(self.buffer), "imitated_traces": len(released)}
        self.more_metrics = {name: torch.tensor(float(n), device=policy.device) for name, n in counts.items()}
        return [*sampled, *_own_share(released, total)]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "buffer": list(self.buffer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if isinstance(state.get("buffer"), list):  # ExGRPO's is a dictionary
            self.buffer = list(state["buffer"])
        else:
            self.buffer = []
            warn_of_empty_buffer("ReLIFT")


def _to_plain(rollout: Rollout) -> dict[str, Any]:
    transcripts = [transcript_to_plain(transcript) for transcript in rollout.transcripts]
    return {"transcripts": transcripts, "text": rollout.text, "finished": rollout.finished}


def _own_share(traces: Sequence[dict[str, Any]], total: int) -> list[Rollout]:
    """Return this process's share of the traces, spread over the `total` groups of the batch."""
    rollouts = []
    for index, trace in enumerate(traces):
        place = index % total
        if place % world_size() == global_rank():
            transcripts = [transcript_from_plain(plain) for plain in trace["transcripts"]]
            rollout = Rollout(transcripts, trace["text"], place // world_size(), True, trace["finished"])
            rollout.counts_in_baseline = False
            rollouts.append(rollout)
    return rollouts
