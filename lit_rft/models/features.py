"""Features of decisions for critics: hidden states at the ends of state, utterance and next state."""

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_rft.models.backbone import causal_lm
from lit_rft.models.forward import hidden_states
from lit_rft.models.modes import evaluation_mode
from lit_rft.transcripts import Transcript, TranscriptBatch

_NO_MATTER = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype", "architectures")


class DecisionFeatures(NamedTuple):
    """Features of a batch's decisions, without gradients."""

    state: Tensor  # [U, D]
    utterance: Tensor  # [U, D]
    next_state: Tensor  # [U, D]; undefined after terminal decisions


def gather_features(hidden: Tensor, batch: TranscriptBatch) -> DecisionFeatures:
    """Gather the decisions' features from the hidden states [B, T, D] of a batch."""
    flat = hidden.detach().flatten(0, 1)
    return DecisionFeatures(flat[batch.state_ends], flat[batch.utterance_ends], flat[batch.next_state_ends])


@contextlib.contextmanager
def frozen_backbone(model: nn.Module) -> Iterator[None]:
    """Use the pretrained model alone: adapters and dropout off, no gradients.

    Raises:
        ValueError: The model has no adapters, so that its backbone is not frozen.
    """
    if not hasattr(model, "peft_config"):
        raise ValueError(
            "features of the frozen backbone need LoRA, but all weights of this model train: set policy.lora"
        )
    with evaluation_mode(model), torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
        yield


def frozen_features(model: nn.Module, batch: TranscriptBatch) -> DecisionFeatures:
    """Compute features with the pretrained model: they do not change while the adapters train."""
    with frozen_backbone(model):
        return gather_features(hidden_states(model, batch), batch)


def split_features(features: DecisionFeatures, transcripts: Sequence[Transcript]) -> list[Tensor]:
    """Split a batch's features into one tensor [3, K, D] per transcript, in their order."""
    stacked = torch.stack(features)
    return list(stacked.split([t.num_decisions for t in transcripts], dim=1))


def join_features(parts: Sequence[Tensor]) -> DecisionFeatures:
    """Join features of transcripts: the inverse of `split_features`."""
    return DecisionFeatures(*torch.cat(list(parts), dim=1))


def backbone_fingerprint(model: nn.Module, samples: int = 64) -> str:
    """Return a fingerprint of everything that features depend on.

    It covers the architecture and its configuration, the libraries' versions, and the names, shapes, types and some
    values of all weights except the adapters'.

    Args:
        model: with or without adapters.
        samples: number of values per weight.
    """
    config = causal_lm(model).config.to_dict()
    about = {key: value for key, value in config.items() if key not in _NO_MATTER}
    versions = (torch.__version__, importlib.metadata.version("transformers"))
    digest = hashlib.sha256(f"{type(causal_lm(model)).__name__}{sorted(about.items())}{versions}".encode())
    for name, parameter in causal_lm(model).named_parameters():
        if "lora_" in name or ".modules_to_save." in name:
            continue
        flat = parameter.detach().flatten()
        samples_of_weight = flat[:: max(1, flat.numel() // samples)].to("cpu", torch.float32, copy=True)
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(samples_of_weight.numpy().tobytes())
    return digest.hexdigest()
