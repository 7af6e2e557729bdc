"""Preference optimisation: DPO over pairs of answers, and over pairs of episodes (ETO's second step)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_rft.agents import Agent
from lit_rft.models.log_probs import utterance_log_probs
from lit_rft.models.modes import evaluation_mode
from lit_rft.models.processes import sum_numbers
from lit_rft.models.reference import reference_policy
from lit_rft.models.sharding import unsharded
from lit_rft.objectives import PreferenceLoss, Sums, preference_loss, trajectory_log_probs
from lit_rft.rollouts.policy import Policy
from lit_rft.stages.core.adapter_folder import is_adapter
from lit_rft.stages.core.data_check import BatchKind
from lit_rft.stages.core.episode_stage import EpisodeStage
from lit_rft.stages.core.evaluate import log_scores
from lit_rft.stages.core.optimize import Optimize
from lit_rft.stages.core.policy import PolicyModule
from lit_rft.stages.core.settings import ActingSettings, BatchingSettings, OptimizerSettings, PolicySettings
from lit_rft.transcripts import TranscriptBatch, count_utterances, step_batch

PAIRS = BatchKind("PreferenceBatch", ("pairs", "num_pairs"), "EpisodePairDataModule or PreferenceDataModule")


class Trajectories(NamedTuple):
    """Both sides of all pairs of a batch, chosen ones first."""

    of_transcript: dict[int, int]  # number of a transcript's trajectory, by its `id()`
    number: int  # 2 P


class PreferenceUpdate:
    r"""One optimiser step on preference pairs of any length.

        L = -1/P sum_p log sigmoid( beta [ log(pi / pi_ref)(chosen) - log(pi / pi_ref)(rejected) ] )

    The loss couples all tokens of a pair, which may be more than a micro-batch holds. A first pass without gradients
    computes each trajectory's log-ratio, and from these dL/d log pi(trajectory). A second pass, over micro-batches
    of any split, has the sum of (dL/d log pi) log pi as its loss: the same gradient, token for token.
    (The first pass has no dropout.)

    Args:
        beta: cost of a deviation from the reference, > 0.
        label_smoothing: assumed share of wrong labels, in [0, 0.5).
        chunk_tokens: logits are computed in chunks of this many tokens.
        batching: micro-batches of the step.

    Raises:
        ValueError: For a value out of its range.
    """

    def __init__(self, beta: float, label_smoothing: float, chunk_tokens: int, batching: BatchingSettings) -> None:
        preference_loss(torch.zeros(1), torch.zeros(1), beta=beta, label_smoothing=label_smoothing)
        self.beta, self.label_smoothing, self.chunk_tokens = beta, label_smoothing, chunk_tokens
        self.batching = batching

    def __call__(self, policy: Policy, batch: Any, optimize: Optimize) -> dict[str, Tensor]:
        """Make the step, and return its metrics.

        Args:
            policy: to train.
            batch: this process's pairs.
            optimize: makes an optimiser step.
        """
        trajectories, micro_batches = self._split(policy, batch)
        log_ratios = self._log_ratios(policy, micro_batches, trajectories).requires_grad_()
        result = self._loss(log_ratios, len(batch.pairs), max(batch.num_pairs, 1))
        (slopes,) = torch.autograd.grad(result.loss, log_ratios)

        def loss(micro: TranscriptBatch) -> tuple[Tensor, Sums]:
            return (slopes * self.log_probs(policy, micro, trajectories)).sum(), {}

        optimize(micro_batches, loss)
        return self.metrics(batch, log_ratios.detach(), policy.device)

    @torch.no_grad()
    def evaluate(self, policy: Policy, batch: Any) -> dict[str, Tensor]:
        """Return the metrics of a batch, without a step."""
        trajectories, micro_batches = self._split(policy, batch)
        return self.metrics(batch, self._log_ratios(policy, micro_batches, trajectories), policy.device)

    def metrics(self, batch: Any, log_ratios: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Average over the pairs of all processes."""
        n = float(len(batch.pairs))
        result = self._loss(log_ratios, len(batch.pairs), 1.0)
        sums = {"loss": float(result.loss), "accuracy": n * float(result.accuracy),
                "chosen_reward": n * float(result.chosen_reward),
                "rejected_reward": n * float(result.rejected_reward), "pairs": n}  # fmt: skip
        totals = sum_numbers(sums, device)
        count = totals.pop("pairs").clamp_min(1)
        means = {name: total / count for name, total in totals.items()}
        return means | {"margin": means["chosen_reward"] - means["rejected_reward"]}

    def _loss(self, log_ratios: Tensor, number: int, normalizer: float) -> PreferenceLoss:
        return preference_loss(
            log_ratios[:number], log_ratios[number:], beta=self.beta, label_smoothing=self.label_smoothing,
            normalizer=normalizer,
        )  # fmt: skip

    def _split(self, policy: Policy, batch: Any) -> tuple[Trajectories, list[TranscriptBatch]]:
        """Return the trajectories, chosen ones first, and micro-batches of their transcripts."""
        sides = [pair.chosen for pair in batch.pairs] + [pair.rejected for pair in batch.pairs]
        of_transcript = {id(transcript): number for number, side in enumerate(sides) for transcript in side}
        transcripts = [transcript for side in sides for transcript in side]
        split = step_batch(
            transcripts, count_utterances(transcripts), micro_batch_tokens=self.batching.micro_batch_tokens, pad_id=0,
            packing=self.batching.packing,
        )  # fmt: skip
        return Trajectories(of_transcript, len(sides)), split.to(policy.device).micro_batches

    @torch.no_grad()
    def _log_ratios(
        self, policy: Policy, micro_batches: Sequence[TranscriptBatch], trajectories: Trajectories
    ) -> Tensor:
        """Return log(pi / pi_ref) of each trajectory, without dropout, [2 P]."""
        # float32 or wider, also where precision bf16-true makes bf16 the default: a margin is a small part of the sums
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        total = torch.zeros(trajectories.number, dtype=dtype, device=policy.device)
        with unsharded(policy.model), evaluation_mode(policy.model):
            for micro in micro_batches:
                total += self.log_probs(policy, micro, trajectories)
                with reference_policy(policy.model):
                    total -= self.log_probs(policy, micro, trajectories)
        return total

    def log_probs(self, policy: Policy, micro: TranscriptBatch, trajectories: Trajectories) -> Tensor:
        """Sum the log-probabilities of a micro-batch's utterances by trajectory, [2 P]."""
        tokens = utterance_log_probs(
            policy.model, micro, end_of_turn_id=policy.chat.end_of_turn_id, chunk_tokens=self.chunk_tokens, ends=False
        ).tokens
        rows = torch.tensor([trajectories.of_transcript[id(t)] for t in micro.transcripts], device=policy.device)
        return trajectory_log_probs(
            tokens, rows[micro.transcript_index], micro.utterance_mask, number=trajectories.number
        )


class TrajectoryDPO(EpisodeStage):
    """DPO over whole episodes: a better and a worse one of the same problem (ETO, arXiv 2403.02502).

    The log-ratio of an episode is the sum over all tokens that the agent wrote, at all levels; observations take no
    part. The reference is the policy that the stage starts from: for ETO's iterations each starts from the last one's
    adapter (`policy.start_from`). `EpisodePairDataModule` makes the pairs; evaluation plays episodes.

    Args:
        policy: model and initial weights; LoRA, whose frozen copy is the reference.
        optimizer: AdamW and its schedule.
        acting: sampling and environment workers in evaluation.
        agent: the agent that acts; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.
        beta: cost of a deviation from the reference, > 0 (ETO: 0.1, later iterations 0.5).
        label_smoothing: assumed share of wrong labels, in [0, 0.5).
        chunk_tokens: logits are computed in chunks of this many tokens.
    """

    training_batch = PAIRS
    needs_reference = True

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        acting: ActingSettings | None = None,
        agent: Agent | None = None,
        batching: BatchingSettings | None = None,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        chunk_tokens: int = 256,
    ) -> None:
        super().__init__(policy, optimizer or OptimizerSettings(learning_rate=1e-6), acting, agent, batching)
        _check_reference(self)
        self.update = PreferenceUpdate(beta, label_smoothing, chunk_tokens, self.batching)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.log_terms(self.update(self.current_policy(), batch, self.optimize))


class DPO(PolicyModule):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) on plain pairs of answers.

    Args:
        policy: model and initial weights; LoRA, whose frozen copy, or the model without it, is the reference.
        optimizer: AdamW and its schedule.
        batching: micro-batches of an optimiser step.
        beta: cost of a deviation from the reference, > 0.
        label_smoothing: assumed share of wrong labels, in [0, 0.5).
        chunk_tokens: logits are computed in chunks of this many tokens.
    """

    training_batch = PAIRS
    needs_reference = True

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        batching: BatchingSettings | None = None,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        chunk_tokens: int = 256,
    ) -> None:
        super().__init__(policy, optimizer or OptimizerSettings(learning_rate=1e-6), batching)
        _check_reference(self)
        self.update = PreferenceUpdate(beta, label_smoothing, chunk_tokens, self.batching)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.log_terms(self.update(self.current_policy(), batch, self.optimize))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log_pairs(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._log_pairs(batch, "test")

    def _log_pairs(self, batch: Any, prefix: str) -> None:
        metrics = self.update.evaluate(self.current_policy(), batch)
        log_scores(self, {f"{prefix}/{name}": v for name, v in metrics.items()}, batch_size=batch.num_pairs)


def _check_reference(stage: PolicyModule) -> None:
    settings = stage.policy_settings
    if settings.lora is None and not is_adapter(settings.start_from):
        raise ValueError(
            f"{type(stage).__name__} needs LoRA, got policy.lora null: the reference policy is a frozen copy of the "
            "adapter, on the same backbone"
        )
