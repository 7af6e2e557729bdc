"""Backbones, adapters and log-probabilities. Names load on first use: transformers takes seconds to import."""

from lit_rft._lazy import lazy_exports

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "LoraSettings": "lit_rft.models.backbone",
    "MergedAdapters": "lit_rft.models.merging",
    "UtteranceLogProbs": "lit_rft.models.log_probs",
    "causal_lm": "lit_rft.models.backbone",
    "chosen_log_probs": "lit_rft.models.log_probs",
    "final_hidden_states": "lit_rft.models.backbone",
    "load_backbone": "lit_rft.models.backbone",
    "load_tokenizer": "lit_rft.models.backbone",
    "output_logits": "lit_rft.models.backbone",
    "smollm2_135m_instruct": "lit_rft.models.smollm2",
    "utterance_log_probs": "lit_rft.models.log_probs",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
