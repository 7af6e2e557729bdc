"""What GLIDER's second and third stage share: an actor by weighted likelihood, utterance-level critics."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lit_rft._seeds import derive_seed, resolve_seed
from lit_rft.agents import Agent
from lit_rft.generation.resample import sample_decisions
from lit_rft.models.backbone import causal_lm
from lit_rft.models.critic import Critic
from lit_rft.models.feature_cache import FeatureCache
from lit_rft.models.features import (
    DecisionFeatures,
    backbone_fingerprint,
    frozen_features,
    gather_features,
    join_features,
    split_features,
)
from lit_rft.models.forward import hidden_states
from lit_rft.models.log_probs import utterance_log_probs
from lit_rft.objectives import (
    Sums,
    discounted_returns,
    polyak_update,
    utterance_log_likelihood,
    weighted_likelihood_loss,
)
from lit_rft.stages.base import EpisodeStage
from lit_rft.stages.critic_updates import IQLUpdate, LevelDecisions, decisions_at
from lit_rft.stages.diagnostics import decision_sums, summarize
from lit_rft.stages.settings import ActingSettings, BatchingSettings, CriticSettings, OptimizerSettings, PolicySettings
from lit_rft.transcripts import StepBatch, Transcript, TranscriptBatch, collate_padded

CriticUpdateFunction = Callable[..., Any]  # a `CriticUpdate`; the command line takes callables by class_path
_TOGETHER = 16  # sampled utterances that are read in one pass
_LOSSES = ("policy_loss", "q_loss", "value_loss")


class ActorCriticStage(EpisodeStage):
    r"""A policy that learns from stored decisions by how good critics find them.

        L_Q  = E[ ( Q(s,u) - r - gamma^k (1 - terminated) V_target(s') )^2 ]               `td_target`, `q_loss`
        L_V  = E[ |expectile - 1(Q_target < V)| (Q_target(s,u) - V(s))^2 ]                 `expectile_value_loss`
        L_pi = -E[ min(exp((Q - V) / advantage_temperature), max_weight) log pi(u|s) ]     `advantage_weights`,
                                                                                           `weighted_likelihood_loss`

    at each level with its own rewards; each expectation is a mean over the decisions of its level in the whole
    optimiser step. Subclasses say where batches come from; `update` makes one optimiser step.

    Args:
        policy: which model, and from where it starts: an adapter folder, a checkpoint of any stage, or null (from
            scratch). A checkpoint with critics starts them too.
        optimizer: AdamW of the actor; schedule, decay and clipping hold for the critics too.
        acting: how episodes are played.
        agent: the agent that acts; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.
        critic: the critics.
        critic_update: critic losses and weights of the actor's loss: `IQLUpdate` (the paper's equations, the default),
            `SarsaUpdate` (its public release: no V, Q towards r + gamma Q_target(s', u'), the actor weighted by
            Q_target itself, the low level by likelihood alone), or any `CriticUpdate`.
        value_actions: utterances that L_V looks at: the data's, or one sampled by the policy in each state (the paper;
            slow: see `sample_decisions`).
        average_tokens: log pi(u|s) per token, or (the equation) its sum.
        high_weight: of the high level's losses, >= 0.
        low_weight: of the low level's, and of a flat agent's, >= 0. Other levels weigh 1.
        chunk_tokens: logits are made for so many action tokens at a time.
    """

    needs_outcomes = True  # data modules add them

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        acting: ActingSettings | None = None,
        agent: Agent | None = None,
        batching: BatchingSettings | None = None,
        critic: CriticSettings | None = None,
        critic_update: CriticUpdateFunction | None = None,
        value_actions: Literal["dataset", "policy"] = "dataset",
        average_tokens: bool = False,
        high_weight: float = 1.0,
        low_weight: float = 1.0,
        chunk_tokens: int = 256,
    ) -> None:
        super().__init__(policy, optimizer or OptimizerSettings(learning_rate=1e-5), acting, agent, batching)
        self.critic_settings = critic or CriticSettings()
        self.critic_update = critic_update if critic_update is not None else IQLUpdate()
        _check_settings(self.critic_update, value_actions, high_weight, low_weight)
        self.value_actions = value_actions
        self.average_tokens, self.chunk_tokens = average_tokens, chunk_tokens
        self.level_weights: dict[str, float] = {"high": high_weight, "low": low_weight, "flat": low_weight}
        self.critic: Critic | None = None
        self.q_and_returns: list[tuple[str, Tensor, Tensor]] = []  # level, Q, return: of this epoch, where it is known
        self._features: FeatureCache | None = None

    # --- the model ---------------------------------------------------------------------------------------------------

    def add_parts(self) -> None:
        """Raises: ValueError for settings that critics cannot be trained with."""
        assert self.policy is not None
        if self._trainer is not None and str(self.trainer.precision) == "bf16-true":
            raise ValueError("precision bf16-true would keep the critics' values in three digits: use bf16-mixed")
        if self.critic_settings.features == "frozen" and not hasattr(self.policy, "peft_config"):
            raise ValueError(
                "critic.features=frozen needs LoRA, all weights of this model train: set policy.lora, or "
                "critic.features=adapted"
            )
        size = causal_lm(self.policy).config.get_text_config().hidden_size
        # three at least: initial weights must not depend on whether GLIDER's two levels leave one unused
        num_levels = max(3, len(self.agent.levels))
        self.critic = Critic(size, num_levels=num_levels, per_level=self.critic_settings.per_level)

    def load_parts(self, weights: dict[str, Tensor], source: str) -> None:
        critic = {name: value for name, value in weights.items() if name.startswith("critic.")}
        if critic:
            names = [name for name, _ in self.named_parameters() if name.startswith("critic.")]
            self._check_complete(critic, names, source)
            self.load_state_dict(critic, strict=False)

    def check_source(self, checkpoint: dict[str, Any], source: str) -> None:
        """Raises: ValueError also for critics that read other features."""
        super().check_source(checkpoint, source)
        has_critic = any(name.startswith("critic.") for name in checkpoint.get("state_dict", ()))
        features = checkpoint["hyper_parameters"].get("critic", {}).get("features")
        if has_critic and features is not None and features != self.critic_settings.features:
            raise ValueError(
                f"the critics of {source} read features={features}, and these are {self.critic_settings.features}: "
                f"set critic.features={features}"
            )

    def _saved_names(self) -> list[str]:
        names = [name for name, _ in self.named_parameters() if name.startswith("critic.target.")]
        return super()._saved_names() + names

    def parameter_groups(self) -> list[dict[str, Any]]:
        assert self.policy is not None and self.critic is not None
        actor = [p for p in self.policy.parameters() if p.requires_grad]
        return [
            {"params": actor, "lr": self.optimizer_settings.learning_rate, "name": "policy"},
            {"params": list(self.critic.online.parameters()), "lr": self.critic_settings.learning_rate,
             "name": "critic"},
        ]  # fmt: skip

    # --- one optimiser step ------------------------------------------------------------------------------------------

    def update(self, batch: StepBatch) -> dict[str, Tensor]:
        """Make one step of actor and critics, then of the targets; returns diagnostics to log."""
        assert self.critic is not None
        sums = self.optimize(batch.micro_batches, partial(self._loss, num_decisions=batch.num_utterances))
        polyak_update(
            self.critic.target.parameters(), self.critic.online.parameters(), rate=self.critic_settings.polyak_rate
        )
        levels = [level for level in self.agent.levels if batch.num_utterances.get(level)]
        losses = ["loss", *(f"{level}/{name}" for level in levels for name in _LOSSES)]
        return {name: sums[name] for name in losses} | summarize(sums, levels)

    def _loss(self, micro: TranscriptBatch, num_decisions: dict[str, int]) -> tuple[Tensor, Sums]:
        """Compute the share of the losses of a micro-batch, and its diagnostics."""
        assert self.policy is not None and self.chat is not None and self.critic is not None
        _check_outcomes(micro)
        hidden = hidden_states(self.policy, micro)
        log_probs = utterance_log_probs(
            self.policy, micro, end_of_turn_id=self.chat.end_of_turn_id, chunk_tokens=self.chunk_tokens, hidden=hidden,
            ends=False,
        )  # fmt: skip
        likelihood = utterance_log_likelihood(
            log_probs.tokens, micro.utterance_mask, average_tokens=self.average_tokens
        )
        features = gather_features(hidden, micro) if self.critic_settings.features == "adapted" else self._frozen(micro)
        proposals = self._proposals(micro) if self.value_actions == "policy" else None
        loss, sums = likelihood.new_zeros(()), Sums()
        for code, level in enumerate(self.agent.levels):
            rows = micro.at_level(level)
            if not rows.any():
                continue
            decisions = decisions_at(level, code, micro, features, proposals)
            terms = self.critic_update(self.critic, decisions, self.critic_settings, num_decisions[level])
            policy_loss = weighted_likelihood_loss(likelihood[rows], terms.weights, normalizer=num_decisions[level])
            parts = (policy_loss, terms.q_loss, terms.value_loss)
            loss = loss + self.level_weights.get(level, 1.0) * sum(parts, torch.zeros_like(loss))
            sums |= {f"{level}/{name}": part for name, part in zip(_LOSSES, parts, strict=True)}
            sums |= decision_sums(level, q=terms.q, value=terms.value, weights=terms.weights, clamped=terms.clamped)
            self._remember_returns(level, decisions, terms.q)
        return loss, sums

    # --- features ----------------------------------------------------------------------------------------------------

    def _frozen(self, micro: TranscriptBatch) -> DecisionFeatures:
        """Features by the pretrained model, from the cache where they are known.

        Each transcript is read by itself: its features then do not depend on what else was in the batch, and a run that
        is resumed has the same ones to the bit.
        """
        assert self.policy is not None
        if self._features is None:
            key = f"{backbone_fingerprint(self.policy)}/{self.trainer.precision}/{self.policy_settings.attention}"
            self._features = FeatureCache(self.critic_settings.cache_dir, key)
        parts = []
        for transcript in micro.transcripts:
            known = self._features.get(transcript)
            if known is None:
                alone = collate_padded([transcript], pad_id=0).to(self.device)
                known = split_features(frozen_features(self.policy, alone), [transcript])[0]
                self._features.put([transcript], [known])
            parts.append(known.to(self.device))
        return join_features(parts)

    def _proposals(self, micro: TranscriptBatch) -> Tensor:
        """Features [U, D] of one utterance of the present policy in each state."""
        assert self.policy is not None and self.chat is not None
        sampling = replace(self.acting.sampling, temperature=1.0, top_k=0, top_p=1.0)
        seed = derive_seed(resolve_seed(self.acting.seed), "proposals", self.global_step)
        sampled = sample_decisions(
            self.policy, micro.transcripts, sampling, self.chat.end_ids, seed=seed, decode=self.chat.tokenizer.decode
        )
        groups = [sampled[start : start + _TOGETHER] for start in range(0, len(sampled), _TOGETHER)]
        return torch.cat([self._utterance_features(group) for group in groups])

    def _utterance_features(self, transcripts: list[Transcript]) -> Tensor:
        assert self.policy is not None
        batch = collate_padded(transcripts, pad_id=0).to(self.device)
        if self.critic_settings.features == "frozen":
            return frozen_features(self.policy, batch).utterance
        with torch.no_grad():
            hidden = hidden_states(self.policy, batch)
        return gather_features(hidden, batch).utterance

    def on_train_epoch_start(self) -> None:
        self.q_and_returns = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self._keep_features()

    def on_fit_end(self) -> None:
        self._keep_features()

    def _keep_features(self) -> None:
        if self._features is not None:
            self._features.flush()

    # --- reports -----------------------------------------------------------------------------------------------------

    def _remember_returns(self, level: str, decisions: LevelDecisions, q: Tensor) -> None:
        """Keep Q beside what was really earned, for a calibration plot (see `CriticCalibration`)."""
        last = torch.ones_like(decisions.terminated)
        last[:-1] = decisions.owner[1:] != decisions.owner[:-1]
        settings = self.critic_settings
        steps = decisions.steps if settings.discount_each == "step" else None
        returns, known = discounted_returns(
            decisions.rewards, decisions.terminated, last, discount=settings.discount, steps=steps
        )
        self.q_and_returns.append((level, q[known].cpu(), returns[known].cpu()))

    def log_terms(self, terms: dict[str, Tensor]) -> None:
        """Log what `update` returned."""
        for name, value in terms.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")


def _check_settings(critic_update: CriticUpdateFunction, value_actions: str, high: float, low: float) -> None:
    if not high >= 0 or not low >= 0:
        raise ValueError(f"high_weight and low_weight must be >= 0, got {high} and {low}")
    if value_actions not in ("dataset", "policy"):
        raise ValueError(f"value_actions must be dataset or policy, got {value_actions!r}")
    if value_actions == "policy" and not getattr(critic_update, "reads_values", True):
        name = type(critic_update).__name__
        raise ValueError(f"value_actions=policy has no effect with {name}, which has no V: set it to dataset")


def _check_outcomes(micro: TranscriptBatch) -> None:
    without = [t.episode_id for t in micro.transcripts if not t.outcomes]
    if without:
        raise ValueError(
            f"the transcripts of {', '.join(without[:3])} have no outcomes, which critics learn from: leave out "
            "data.init_args.outcomes, or use `add_outcomes`"
        )
