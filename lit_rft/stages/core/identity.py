"""The identity of a policy: base model, adapter and chat format, as plain data for checkpoints to store and compare."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lit_rft._plain import to_plain
from lit_rft.models.backbone import causal_lm
from lit_rft.models.sharding import unsharded
from lit_rft.transcripts import ChatFormat

_SAMPLES = 64  # number of values per weight

# Keys of a model's configuration that do not affect its outputs, or differ between two loads of it.
_CONFIG_NOISE = {
    "_name_or_path", "architectures", "attn_implementation", "_attn_implementation", "auto_map", "bos_token_id",
    "dtype", "eos_token_id", "gradient_checkpointing", "id2label", "label2id", "output_attentions",
    "output_hidden_states", "pad_token_id", "return_dict", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip

# Keys of an adapter's configuration about its origin and training that do not affect its outputs.
_ADAPTER_NOISE = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "lora_dropout", "peft_version",
    "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip

# Stored to make the adapter again, but not compared: two patterns may match the same modules.
_TARGETS = "targets"

_PROBE = "Go to the kitchen, 12.5 times:\n  look <at> it."


def policy_identity(policy: nn.Module, chat: ChatFormat, model_name: str) -> dict[str, Any]:
    """Describe a policy, before its base model's weights have changed."""
    config = json.loads(causal_lm(policy).config.to_json_string(use_diff=False))
    model = {
        "name": model_name,
        "weights": weights_fingerprint(policy),
        "config": {key: value for key, value in config.items() if key not in _CONFIG_NOISE},
    }
    return {"model": model, "adapter": adapter_identity(policy), "chat": chat_identity(chat)}


def weights_fingerprint(policy: nn.Module) -> str:
    """Hash some values of each weight of the base model.

    The same for a model in float32 or bfloat16, with or without adapters, and from any folder: values are rounded to
    bfloat16, and names are not included.
    """
    prefix = getattr(getattr(policy, "base_model", None), "prefix", "lora_")
    skipped = (prefix, "modules_to_save.", "trainable_tokens_")
    digests = []
    for name, parameter in causal_lm(policy).named_parameters():
        if any(part in name for part in skipped):
            continue
        digests.append(_digest(parameter, torch.bfloat16))
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def current_fingerprint(policy: nn.Module) -> str:
    """Hash some values of each current weight, including adapters, to distinguish checkpoints.

    A collective call for a sharded model.
    """
    digests = []
    with unsharded(policy):
        for parameter in policy.parameters():
            digests.append(_digest(parameter, torch.float32))
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]


def _digest(parameter: torch.Tensor, dtype: torch.dtype) -> bytes:
    """Hash a weight's shape and some of its values, rounded to a data type."""
    flat = parameter.detach().flatten()
    # a copy, since a numpy view would keep the storage of a gathered weight; as bytes, since numpy has no bfloat16
    values = flat[:: max(1, flat.numel() // _SAMPLES)].to("cpu", dtype, copy=True).view(torch.uint8)
    return hashlib.sha256(f"{tuple(parameter.shape)}".encode() + values.numpy().tobytes()).digest()


def digest(plain: Any) -> str:
    """Hash JSON-like data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def adapter_identity(policy: nn.Module) -> dict[str, Any] | None:
    """Describe the trained adapter: its PEFT configuration and modules; None without one."""
    configs: Any = getattr(policy, "peft_config", None)
    if not configs:
        return None
    config = configs["default"] if "default" in configs else next(iter(configs.values()))
    settings = {key: to_plain(value) for key, value in config.to_dict().items() if key not in _ADAPTER_NOISE}
    return settings | {"modules": adapted_modules(policy), _TARGETS: to_plain(config.target_modules)}


def adapted_modules(policy: nn.Module) -> list[str]:
    """Return the last names of the modules that have adapters."""
    prefix = getattr(getattr(policy, "base_model", None), "prefix", "lora_")
    parents = {name.split(f".{prefix}")[0] for name, _ in policy.named_parameters() if f".{prefix}" in name}
    return sorted({parent.rpartition(".")[2] for parent in parents})


def chat_identity(chat: ChatFormat) -> dict[str, Any]:
    """Describe the conversion of text to tokens: template, end token, tokenizer.

    The template's text is hashed, not its rendering, which may contain today's date.
    """
    template = json.dumps(to_plain(chat.tokenizer.chat_template), sort_keys=True) if chat.uses_template else None
    tokens: list[Any] = [chat.utterance(_PROBE), chat.tokenizer.bos_token_id]
    if not chat.uses_template:
        tokens += [chat.head("system", "user"), chat.turn("user")]
    return {
        "template": None if template is None else hashlib.sha256(template.encode()).hexdigest()[:16],
        "end_of_turn": chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn_id),
        "tokens": hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16],
    }


def identity_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each difference between two policies: first the saved one, then the current one."""
    return [
        *_model_differences(saved["model"], current["model"]),
        *_adapter_differences(saved.get("adapter"), current.get("adapter")),
        *_chat_differences(saved["chat"], current["chat"]),
    ]


def _model_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    pairs = _changed(saved["config"], current["config"])
    changes = [f"{key}={_short(old)} -> {_short(new)}" for key, old, new in pairs]
    if saved["weights"] != current["weights"]:
        changes.insert(0, "other weights")
    names = f"{saved['name']!r} -> {current['name']!r}"
    return [f"the base model is another one: {names} ({', '.join(changes)})"] if changes else []


def _adapter_differences(saved: Mapping[str, Any] | None, current: Mapping[str, Any] | None) -> list[str]:
    if saved is None or current is None:
        kinds = [f"a {adapter['peft_type']} adapter" if adapter else "all weights" for adapter in (saved, current)]
        return [] if saved == current else [f"what trains is another part: {kinds[0]} -> {kinds[1]}"]
    names = {"r": "lora.rank", "lora_alpha": "lora.alpha", "modules": "lora.target_modules"}
    changes = [f"{names.get(key, key)}: {_short(old)} -> {_short(new)}" for key, old, new in _changed(saved, current)]
    return [f"the adapter has other settings: {', '.join(changes)}"] if changes else []


def _chat_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    names = {"template": "chat template", "end_of_turn": "end token", "tokens": "tokenizer"}
    changes = [f"{names.get(key, key)} {_short(old)} -> {_short(new)}" for key, old, new in _changed(saved, current)]
    return [f"the chat format is another one: {', '.join(changes)}"] if changes else []


def _changed(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Sequence[tuple[str, Any, Any]]:
    """Compare the common keys: a newer version of a library may have more."""
    keys = [key for key in saved if key in current and key != _TARGETS]
    return [(key, saved[key], current[key]) for key in keys if saved[key] != current[key]]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
