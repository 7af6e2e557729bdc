"""Utterance-level critics as a part of a stage, and the features that they read."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_rft._seeds import derive_seed, resolve_seed
from lit_rft.generation import SamplingSettings
from lit_rft.generation.resample import sample_decisions
from lit_rft.models.backbone import state_size
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
from lit_rft.rollouts.policy import Policy
from lit_rft.stages.core.checkpoints import check_complete
from lit_rft.stages.core.parts import WeightPart
from lit_rft.stages.core.settings import ActingSettings, CriticSettings
from lit_rft.transcripts import Transcript, TranscriptBatch, collate_padded

_TOGETHER = 16  # sampled utterances per forward pass


class Critics(WeightPart):
    """Critics, added to a stage as `critic`.

    Args:
        settings: of the critics.
        levels: of the agent.
    """

    def __init__(self, settings: CriticSettings, levels: tuple[str, ...]) -> None:
        self.settings, self.levels = settings, levels
        self.critic: Critic | None = None

    def add(self, stage: Any) -> None:
        if stage.precision == "bf16-true":
            raise ValueError("precision bf16-true would keep the critics' values in three digits: use bf16-mixed")
        if self.settings.features == "frozen" and not hasattr(stage.policy, "peft_config"):
            raise ValueError(
                "critic.features=frozen needs LoRA, all weights of this model train: set policy.lora, or "
                "critic.features=adapted"
            )
        size = state_size(stage.policy)
        # three at least: initial weights must not depend on whether GLIDER's two levels leave one unused
        self.critic = Critic(size, num_levels=max(3, len(self.levels)), per_level=self.settings.per_level)
        stage.critic = self.critic

    def saved_names(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name.startswith("critic.target.")]

    def check_source(self, checkpoint: Mapping[str, Any], source: str) -> None:
        has_critic = any(name.startswith("critic.") for name in checkpoint.get("state_dict", ()))
        features = checkpoint["hyper_parameters"].get("critic", {}).get("features")
        if has_critic and features is not None and features != self.settings.features:
            raise ValueError(
                f"the critics of {source} read features={features}, and these are {self.settings.features}: set "
                f"critic.features={features}"
            )

    def load(self, stage: Any, weights: Mapping[str, Tensor], source: str) -> None:
        critic = {name: value for name, value in weights.items() if name.startswith("critic.")}
        if critic:
            names = [name for name, _ in stage.named_parameters() if name.startswith("critic.")]
            check_complete(critic, names, source)
            stage.load_state_dict(critic, strict=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        assert self.critic is not None
        parameters = list(self.critic.online.parameters())
        return [{"params": parameters, "lr": self.settings.learning_rate, "name": "critic"}]


class FeatureReader:
    """Features of decisions, according to `CriticSettings.features`.

    Args:
        settings: of the critics.
        acting: sampling of other utterances, for `proposals`.
    """

    def __init__(self, settings: CriticSettings, acting: ActingSettings) -> None:
        self.settings, self.acting = settings, acting
        self.cache: FeatureCache | None = None  # of frozen features

    def __call__(self, policy: Policy, micro: TranscriptBatch, hidden: Tensor) -> DecisionFeatures:
        """Return the features of a micro-batch.

        Args:
            policy: whose hidden states these are.
            micro: the micro-batch.
            hidden: final hidden states [B, T, D] under the policy.
        """
        if self.settings.features == "adapted":
            return gather_features(hidden, micro)
        if self.cache is None:
            key = f"{backbone_fingerprint(policy.model)}/{policy.numerics}"
            self.cache = FeatureCache(self.settings.cache_dir, key)
        return join_features([self._frozen(policy, self.cache, transcript) for transcript in micro.transcripts])

    def _frozen(self, policy: Policy, cache: FeatureCache, transcript: Transcript) -> Tensor:
        """Return a transcript's features [3, K, D] under the pretrained model, from the cache where possible.

        Each transcript has its own forward pass: its features do not depend on the rest of the batch, and a resumed
        run has the same ones to the bit.
        """
        features = cache.get(transcript)
        if features is None:
            batch = collate_padded([transcript], pad_id=0).to(policy.device)
            features = split_features(frozen_features(policy.model, batch), [transcript])[0]
            cache.put([transcript], [features])
        return features.to(policy.device)

    def proposals(self, policy: Policy, micro: TranscriptBatch) -> Tensor:
        """Return features [U, D] of one utterance sampled by the policy in each state, with the limits of acting."""
        by_level = {level: _unchanged(sampling) for level, sampling in self.acting.level_sampling.items()}
        seed = derive_seed(resolve_seed(self.acting.seed), "proposals", policy.step)
        sampled = sample_decisions(
            policy.model, micro.transcripts, _unchanged(self.acting.sampling), policy.chat.end_ids, seed=seed,
            decode=policy.chat.tokenizer.decode, level_sampling=by_level,
        )  # fmt: skip
        groups = [sampled[start : start + _TOGETHER] for start in range(0, len(sampled), _TOGETHER)]
        return torch.cat([self.utterance_features(policy, group) for group in groups])

    def utterance_features(self, policy: Policy, transcripts: list[Transcript]) -> Tensor:
        """Return features [U, D] of the utterances of transcripts, not from the cache."""
        batch = collate_padded(transcripts, pad_id=0).to(policy.device)
        if self.settings.features == "frozen":
            return frozen_features(policy.model, batch).utterance
        with torch.no_grad():
            hidden = hidden_states(policy.model, batch)
        return gather_features(hidden, batch).utterance

    def retain(self, transcripts: Iterable[Transcript]) -> None:
        """Drop the features of all other transcripts from memory."""
        if self.cache is not None:
            self.cache.retain(transcripts)

    def flush(self) -> None:
        """Write the features to `cache_dir`, for the next run."""
        if self.cache is not None:
            self.cache.flush()


def _unchanged(sampling: SamplingSettings) -> SamplingSettings:
    """Return settings that sample from the policy's own distribution, with the same limits."""
    return replace(sampling, temperature=1.0, top_k=0, top_p=1.0)
