"""GLIDER's first stage: hierarchical supervised fine-tuning."""

from functools import partial

from torch import Tensor

from lit_rft.agents import Agent
from lit_rft.batches import StepTranscripts
from lit_rft.models.log_probs import utterance_log_probs
from lit_rft.objectives import Sums, utterance_likelihood_loss
from lit_rft.stages.core.data_check import STEPS
from lit_rft.stages.core.episode_stage import EpisodeStage, weights_of_levels
from lit_rft.stages.core.settings import ActingSettings, BatchingSettings, OptimizerSettings, PolicySettings
from lit_rft.transcripts import TranscriptBatch


class HierarchicalSFT(EpisodeStage):
    r"""Likelihood of expert subgoals and actions under one policy with two prompts (GLIDER, ICML 2025, L_SFT).

        L = w_h E_{D^h}[ -log pi(g | d, o) + lambda n~_h ] + w_l E_{D^l}[ -log pi(a | g, o) + lambda n~_l ]

    Each expectation is a mean over the utterances of its level in the optimiser step, see `utterance_likelihood_loss`.
    `FlatAgent` is flat SFT: the same likelihood on one transcript of actions. Conversations of
    `AgentTuningDataModule` are a level of their own, `general`.

    Deviations: the length term uses the policy's expected length n~, because the data's length n has no gradient; by
    default the low level reads the task as well as the subgoal (`HierarchyPrompts.low_level_sees_task`), and the full
    episode so far, not only the last observation.

    Args:
        policy: model and initial weights.
        optimizer: AdamW and its schedule.
        acting: sampling and environment workers in validation, test and predict.
        agent: the agent that acts; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.
        level_weights: weights >= 0 by level of the agent, such as `{high: w_h, low: w_l}`; 1 for levels left out.
        length_coef: lambda, >= 0.
        average_tokens: log-likelihood per token of an utterance (GLIDER's release), or its sum.
        pooled: one mean over the utterances of all levels, in place of the sum of each level's mean: mixtures of data
            then count by their share (AgentTuning).
        chunk_tokens: logits are computed in chunks of this many tokens.
    """

    training_batch = STEPS
    other_levels = ("general",)  # of transcripts that are none of the agent's

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        acting: ActingSettings | None = None,
        agent: Agent | None = None,
        batching: BatchingSettings | None = None,
        level_weights: dict[str, float] | None = None,
        length_coef: float = 0.0,
        average_tokens: bool = True,
        pooled: bool = False,
        chunk_tokens: int = 256,
    ) -> None:
        super().__init__(policy, optimizer, acting, agent, batching)
        if not length_coef >= 0:
            raise ValueError(f"length_coef must be >= 0, got {length_coef}")
        self.level_weights = weights_of_levels(self.agent, level_weights)
        self.length_coef = length_coef
        self.average_tokens, self.pooled = average_tokens, pooled
        self.chunk_tokens = chunk_tokens

    def training_step(self, batch: StepTranscripts, batch_idx: int) -> None:
        step = self.step_batch(batch.transcripts, batch.num_utterances)
        self.log_terms(self.optimize(step.micro_batches, partial(self._loss, num_utterances=step.num_utterances)))

    def _loss(self, micro: TranscriptBatch, num_utterances: dict[str, int]) -> tuple[Tensor, Sums]:
        """Compute the share of L of a micro-batch, and its parts."""
        assert self.policy is not None and self.chat is not None
        log_probs = utterance_log_probs(
            self.policy, micro, end_of_turn_id=self.chat.end_of_turn_id, chunk_tokens=self.chunk_tokens,
            ends=self.length_coef > 0,
        )  # fmt: skip
        loss, sums = log_probs.tokens.new_zeros(()), Sums()
        total = sum(num_utterances.values())
        for level in (*self.agent.levels, *self.other_levels):
            rows = micro.at_level(level)
            if not rows.any():
                continue
            term = utterance_likelihood_loss(
                log_probs.tokens[rows],
                micro.utterance_mask[rows],
                end_log_probs=log_probs.end[rows],
                length_coef=self.length_coef,
                average_tokens=self.average_tokens,
                normalizer=num_utterances[level],
            )
            weight = self.level_weights.get(level, 1.0) * (num_utterances[level] / total if self.pooled else 1.0)
            loss = loss + weight * term.loss
            share = rows.sum() / num_utterances[level]
            parts = {"loss": term.loss.detach(), "log_likelihood": term.log_likelihood_mean * share}
            if self.length_coef > 0:
                parts["expected_length"] = term.expected_length_mean * share
            sums |= {f"{level}/{name}": part for name, part in parts.items()}
        return loss, sums
