"""Backbones, adapters and log-probabilities. Names load on first use: transformers takes seconds to import."""

from lit_rft._lazy import lazy_exports

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "Critic": "lit_rft.models.critic",
    "CriticHeads": "lit_rft.models.critic",
    "DecisionFeatures": "lit_rft.models.features",
    "FeatureCache": "lit_rft.models.feature_cache",
    "ActingWeights": "lit_rft.models.merging",
    "LoraSettings": "lit_rft.models.lora",
    "UtteranceLogProbs": "lit_rft.models.log_probs",
    "acting_adapter": "lit_rft.models.merging",
    "backbone_fingerprint": "lit_rft.models.features",
    "causal_lm": "lit_rft.models.backbone",
    "chosen_log_probs": "lit_rft.models.log_probs",
    "final_hidden_states": "lit_rft.models.backbone",
    "frozen_backbone": "lit_rft.models.features",
    "frozen_features": "lit_rft.models.features",
    "gather_features": "lit_rft.models.features",
    "load_backbone": "lit_rft.models.backbone",
    "load_tokenizer": "lit_rft.models.backbone",
    "output_logits": "lit_rft.models.backbone",
    "smollm2_135m_instruct": "lit_rft.models.smollm2",
    "utterance_log_probs": "lit_rft.models.log_probs",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
