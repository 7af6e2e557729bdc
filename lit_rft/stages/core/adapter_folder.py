"""PEFT adapter folders as initial weights: their settings, and their base model."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lit_rft._plain import to_plain
from lit_rft.models.backbone import causal_lm
from lit_rft.models.lora import ALL_LINEAR, ATTENTION, LoraSettings, is_attention, is_excluded, is_linear
from lit_rft.stages.core.identity import adapted_modules, identity_differences
from lit_rft.stages.core.settings import PolicySettings

logger = logging.getLogger(__name__)

RECORD = "policy.json"  # in an exported folder: the identity of the adapter's policy
_PEFT_NAMES = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}


def is_adapter(path: str | None) -> bool:
    """Return whether initial weights are in an adapter folder, not in a checkpoint file."""
    return path is not None and Path(path).is_dir()


def check_adapter_folder(
    folder: Path, policy: nn.Module, identity: Mapping[str, Any], settings: PolicySettings
) -> None:
    """Compare a loaded adapter folder with the settings; the folder's adapter takes precedence.

    Args:
        folder: of the loaded adapter.
        policy: a PEFT model.
        identity: of `policy`.
        settings: may have other values.

    Raises:
        ValueError: If `settings.lora` sets other values than the folder has, or if the folder's adapter belongs to
            another base model or chat format.
    """
    configs: Any = policy.peft_config
    config = configs["default"]
    record = folder / RECORD
    if record.is_file():
        mismatches = identity_differences(json.loads(record.read_text(encoding="utf-8")), identity)
        if mismatches:
            raise ValueError(f"{folder} does not fit the model: {'; '.join(mismatches)} (in the folder -> here)")
    elif config.base_model_name_or_path and config.base_model_name_or_path != settings.model:
        logger.warning(
            "the adapter of %s was made for the model %s, but is loaded on %s: make sure that they are the same",
            folder, config.base_model_name_or_path, settings.model,
        )  # fmt: skip
    if settings.lora is not None:
        _check_lora(folder, policy, config, settings.lora)


def _check_lora(folder: Path, policy: nn.Module, config: Any, lora: LoraSettings) -> None:
    refused: list[str] = []
    ignored: list[str] = []
    modules, defaults = adapted_modules(policy), LoraSettings()
    for field in dataclasses.fields(lora):
        ours = getattr(lora, field.name)
        theirs = to_plain(getattr(config, _PEFT_NAMES.get(field.name, field.name), None))
        if field.name == "init_lora_weights":  # for new adapters only
            continue
        if field.name == "target_modules":
            same, theirs = _wanted_modules(policy, lora) in (None, set(modules), _linear_modules(policy)), modules
        else:
            same = (to_plain(ours) or None) == (theirs or None)
        if not same:
            default = getattr(defaults, field.name)
            (ignored if ours == default else refused).append(f"{field.name} is {theirs} there, {to_plain(ours)} here")
    if refused:
        raise ValueError(
            f"policy.lora does not match the adapter that policy.start_from names: {', '.join(refused)}; an adapter "
            f"folder ({folder}) brings its own settings: set policy.lora to them, or to null"
        )
    if ignored:
        logger.info("the adapter of %s brings its own settings: %s", folder, ", ".join(ignored))


def _wanted_modules(policy: nn.Module, lora: LoraSettings) -> set[str] | None:
    """Return the last names of the modules in LoRA settings; None for a pattern, which is not compared."""
    target, model = lora.target_modules, causal_lm(policy)
    if not isinstance(target, str):
        return {name.rpartition(".")[2] for name in target}
    if target not in (ALL_LINEAR, ATTENTION):
        return None
    head = model.get_output_embeddings()
    names = [
        name.removesuffix(".base_layer")
        for name, module in model.named_modules()
        if is_linear(module) and module not in (head, getattr(head, "base_layer", None))
        if not any(part in name for part in ("lora_", ".modules_to_save.", ".original_module"))
    ]
    return {
        name.rpartition(".")[2]
        for name in names
        if (target == ALL_LINEAR or is_attention(name)) and not is_excluded(name, lora)
    }


def _linear_modules(policy: nn.Module) -> set[str]:
    """Return the last names of the adapted linear layers: PEFT adapts experts that are one parameter as well."""
    layers = [(name, layer) for name, layer in policy.named_modules() if hasattr(layer, "lora_A")]
    return {name.rpartition(".")[2] for name, layer in layers if is_linear(layer.get_base_layer())}


def without_start(settings: PolicySettings, identity: Mapping[str, Any]) -> PolicySettings:
    """Return the settings of a policy whose weights all come from a checkpoint, with the adapter of that checkpoint.

    Args:
        settings: of the run.
        identity: of the policy, from the checkpoint.
    """
    adapter = identity["adapter"]
    if not identity["adapter_from_folder"]:
        return dataclasses.replace(settings, start_from=None)
    if adapter["peft_type"] != "LORA":
        return settings  # its settings are only in its initial folder
    lora = settings.lora or LoraSettings(dropout=0.0)
    names = {field.name: _PEFT_NAMES.get(field.name, field.name) for field in dataclasses.fields(lora)}
    values = {name: adapter[peft] for name, peft in names.items() if peft in adapter}
    values["target_modules"] = adapter["targets"]
    return dataclasses.replace(settings, start_from=None, lora=dataclasses.replace(lora, **values))
