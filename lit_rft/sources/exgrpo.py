"""ExGRPO: replay of the policy's own right completions (Zhan et al. 2025, arXiv 2510.02245)."""

import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_rft._seeds import resolve_seed
from lit_rft.batches import Prompt, PromptBatch
from lit_rft.models.processes import all_gather_objects, global_index
from lit_rft.problems import Problem
from lit_rft.rollouts import GroupSource, Policy, Rollout
from lit_rft.sources.wrapped import WrappedSource, warn_of_empty_buffer


@dataclass(frozen=True)
class ExGRPO:
    """Replace a share of the prompts by earlier ones, each with one of its right completions as an off-policy trace.

    The trace has the log-probabilities of the policy that sampled it, and `MixedPolicyLoss` shapes the ratio to them. A
    prompt comes in when some, but not all, of its completions are right, and goes when all are. It has the right one of
    highest mean log-probability (lowest entropy at its sampling), of the last time that there was one. It is drawn with
    weight exp(-(rate - 1/2)^2 / (2 width^2)), rate its share of right completions the last time: most often at medium
    difficulty. Traces of the data are not used.

    Departures: the paper keeps all right completions of a prompt and replays that of lowest entropy under the current
    policy, here the choice is made at their sampling; its weights are the density of N(1/2, 1), a `width` of 1, nearly
    uniform. The paper's advantages are those of Dr. GRPO (`advantages.scale_by_std: false`, as in the overlay).

    Needs `objective.traces_per_group`: 1 (the paper) or more; others are refused when the stage is made.

    Args:
        share: of the prompts of a batch, in [0, 1].
        width: of the weights, > 0.
        right_reward: completions with a higher reward are right.
        start_rate: share of right completions in a batch from which on prompts are replayed.
        seed: of the draws; null for the run's `seed_everything`.
    """

    share: float = 0.5
    width: float = 0.25
    right_reward: float = 0.5
    start_rate: float = 0.35
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not self.width > 0:
            raise ValueError(f"source.share must be in [0, 1] and source.width > 0, got {self.share} and {self.width}")
        for name in ("right_reward", "start_rate"):
            if math.isnan(getattr(self, name)):
                raise ValueError(f"source.{name} must be a number, got {getattr(self, name)}")

    def __call__(self, source: GroupSource) -> WrappedSource:
        if source.traces_per_group < 1:
            raise ValueError(
                "ExGRPO replays completions as traces in their groups: set objective.traces_per_group to 1 or more, "
                f"got {source.traces_per_group}"
            )
        return _ReplayingSource(source, self)


class _ReplayingSource(WrappedSource):
    def __init__(self, source: GroupSource, settings: ExGRPO) -> None:
        super().__init__(source)
        self.settings, self.seed = settings, resolve_seed(settings.seed)
        self.buffer: dict[str, dict[str, Any]] = {}  # problem id -> experience; the same in all processes
        self.started = False

    def __call__(self, policy: Policy, batch: PromptBatch) -> list[Rollout]:
        """Return the groups, some of them of replayed prompts; all processes must call this."""
        prompts, number = self._mix(policy, batch.prompts)
        rollouts = self.source(policy, PromptBatch(prompts, batch.sources))
        local = [self._experience(prompt, group, rollouts) for group, prompt in enumerate(prompts)]
        experiences = _in_order(local)
        for experience in experiences:
            if experience["rate"] == 1:
                self.buffer.pop(experience["id"], None)  # solved
            elif experience["rate"] > 0:
                self.buffer[experience["id"]] = experience
            elif experience["id"] in self.buffer:  # with the completion of an earlier time
                # a copy: a checkpoint that is not written yet refers to the old one
                self.buffer[experience["id"]] = self.buffer[experience["id"]] | {"rate": 0.0}
        rates = [experience["rate"] for experience in experiences]
        self.started |= bool(rates) and sum(rates) >= self.settings.start_rate * len(rates)
        counts = {"replayed_prompts": number, "replay_buffer": len(self.buffer)}
        self.more_metrics = {name: torch.tensor(float(n), device=policy.device) for name, n in counts.items()}
        return rollouts

    def _mix(self, policy: Policy, prompts: Sequence[Prompt]) -> tuple[list[Prompt], int]:
        """Replace the last prompts of the batch of all processes; return this process's prompts, and their number."""
        ids = _in_order([prompt.problem.id for prompt in prompts])
        wanted = round(self.settings.share * len(ids)) if self.started else 0
        known = sorted(self.buffer.keys() - set(ids))  # a prompt twice in a batch would have equal completions
        rng = random.Random(f"{self.seed}/{policy.occasion}")  # the same in all processes
        # ascending -log(u) / weight, as a logarithm: a weight may be less than any number above 0
        draws = {name: math.log(-math.log(max(rng.random(), 1e-300))) - self._log_weight(self.buffer[name]["rate"])
                 for name in known}  # fmt: skip
        chosen = sorted(known, key=lambda name: draws[name])[:wanted]
        mixed = []
        for index, prompt in enumerate(prompts):
            place = global_index(index) - (len(ids) - len(chosen))
            plain = dataclasses.replace(prompt, traces=[], trace_texts=[], trace_log_probs=[])
            mixed.append(plain if place < 0 else _replayed(self.buffer[chosen[place]]))
        return mixed, len(chosen)

    def _log_weight(self, rate: float) -> float:
        scaled = (rate - 0.5) / self.settings.width
        return -scaled * scaled / 2

    def _experience(self, prompt: Prompt, group: int, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """Return a prompt's share of right completions, and the best of these if there are any."""
        sampled = [rollout for rollout in rollouts if rollout.group == group and not rollout.off_policy]
        right = [rollout for rollout in sampled if rollout.reward > self.settings.right_reward]
        experience = {"id": prompt.problem.id, "rate": len(right) / max(len(sampled), 1)}
        if not right:
            return experience
        best = max(right, key=lambda rollout: sum(rollout.sampled_log_probs[0]) / rollout.length)
        problem = dataclasses.replace(prompt.problem, traces=(), trace_log_probs=())
        return experience | {
            "problem": dataclasses.asdict(problem), "prompt": list(prompt.ids), "text": best.text,
            "completion": list(best.transcripts[0].utterance_ids(0)), "log_probs": list(best.sampled_log_probs[0]),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "buffer": dict(self.buffer), "started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if "started" in state:
            self.buffer, self.started = dict(state["buffer"]), state["started"]
        else:
            self.buffer, self.started = {}, False
            warn_of_empty_buffer("ExGRPO")


def _replayed(experience: dict[str, Any]) -> Prompt:
    return Prompt(
        Problem(**experience["problem"]), experience["prompt"], [experience["completion"]], [experience["text"]],
        [experience["log_probs"]],
    )  # fmt: skip


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Return the values of all processes, in the order of the batch: each has every world_size-th."""
    shares = all_gather_objects(list(values))
    return [shares[k % len(shares)][k // len(shares)] for k in range(sum(map(len, shares)))]
