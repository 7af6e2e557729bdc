"""Backbones, adapters, forward passes and log-probabilities.

Names load on first use: transformers takes seconds to import.
"""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.models.accel import FAST_PATHS as FAST_PATHS
    from lit_rft.models.accel import accelerate as accelerate
    from lit_rft.models.backbone import causal_lm as causal_lm
    from lit_rft.models.backbone import final_hidden_states as final_hidden_states
    from lit_rft.models.backbone import load_backbone as load_backbone
    from lit_rft.models.backbone import load_tokenizer as load_tokenizer
    from lit_rft.models.backbone import model_end_ids as model_end_ids
    from lit_rft.models.backbone import output_logits as output_logits
    from lit_rft.models.critic import Critic as Critic
    from lit_rft.models.critic import CriticHeads as CriticHeads
    from lit_rft.models.feature_cache import FeatureCache as FeatureCache
    from lit_rft.models.features import DecisionFeatures as DecisionFeatures
    from lit_rft.models.features import backbone_fingerprint as backbone_fingerprint
    from lit_rft.models.features import frozen_backbone as frozen_backbone
    from lit_rft.models.features import frozen_features as frozen_features
    from lit_rft.models.features import gather_features as gather_features
    from lit_rft.models.forward import hidden_states as hidden_states
    from lit_rft.models.log_probs import UtteranceLogProbs as UtteranceLogProbs
    from lit_rft.models.log_probs import chosen_log_probs as chosen_log_probs
    from lit_rft.models.log_probs import utterance_log_probs as utterance_log_probs
    from lit_rft.models.lora import LoraSettings as LoraSettings
    from lit_rft.models.merging import MergedWeights as MergedWeights
    from lit_rft.models.merging import use_adapter as use_adapter
    from lit_rft.models.scratch import save_scratch_model as save_scratch_model
    from lit_rft.models.smollm2 import smollm2_135m_instruct as smollm2_135m_instruct

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "FAST_PATHS": "lit_rft.models.accel",
    "accelerate": "lit_rft.models.accel",
    "hidden_states": "lit_rft.models.forward",
    "Critic": "lit_rft.models.critic",
    "CriticHeads": "lit_rft.models.critic",
    "DecisionFeatures": "lit_rft.models.features",
    "FeatureCache": "lit_rft.models.feature_cache",
    "MergedWeights": "lit_rft.models.merging",
    "LoraSettings": "lit_rft.models.lora",
    "UtteranceLogProbs": "lit_rft.models.log_probs",
    "use_adapter": "lit_rft.models.merging",
    "backbone_fingerprint": "lit_rft.models.features",
    "causal_lm": "lit_rft.models.backbone",
    "chosen_log_probs": "lit_rft.models.log_probs",
    "final_hidden_states": "lit_rft.models.backbone",
    "frozen_backbone": "lit_rft.models.features",
    "frozen_features": "lit_rft.models.features",
    "gather_features": "lit_rft.models.features",
    "load_backbone": "lit_rft.models.backbone",
    "load_tokenizer": "lit_rft.models.backbone",
    "model_end_ids": "lit_rft.models.backbone",
    "output_logits": "lit_rft.models.backbone",
    "save_scratch_model": "lit_rft.models.scratch",
    "smollm2_135m_instruct": "lit_rft.models.smollm2",
    "utterance_log_probs": "lit_rft.models.log_probs",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
