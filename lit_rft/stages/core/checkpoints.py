"""Checks of a stage's checkpoints, and weights to start from."""

import logging
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lit_rft._plain import with_class
from lit_rft.models.reference import add_reference, is_reference
from lit_rft.stages.core.adapter_folder import without_start
from lit_rft.stages.core.frozen_levels import is_frozen
from lit_rft.stages.core.hyper_parameters import differences, rebuild_arguments
from lit_rft.stages.core.identity import identity_differences

logger = logging.getLogger(__name__)

IDENTITY = "policy"  # key of the policy's identity in a checkpoint
# Settings that give saved weights their meaning: a run cannot continue with others. All else may change on resume.
_FIXED = ("agent", "frozen_levels", "critic.features", "critic.per_level")
_FREE = ("agent.init_args.max_length",)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the checkpoint file of `policy.start_from`.

    Raises:
        ValueError: If there is no such file, or it contains anything but tensors and plain values.
    """
    if not path.is_file():
        reason = "which holds no adapter" if path.exists() else "which is not there"
        raise ValueError(
            f"policy.start_from must be a PEFT adapter folder or a checkpoint file, got {path}, {reason}: run the "
            "stage before this one first, or name its checkpoint (null: from scratch)"
        )
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"policy.start_from: {path} is no checkpoint of tensors and plain values") from error
    return checkpoint


def load_start(stage: Any, path: Path) -> None:
    """Load the weights of a checkpoint of any stage into a new one.

    Raises:
        ValueError: If they do not fit, or would mean something else here.
    """
    checkpoint, source = read_checkpoint(path), str(path)
    check_source(stage, checkpoint, source)
    weights = {name: value for name, value in checkpoint["state_dict"].items() if not is_reference(name)}
    if any(is_frozen(name) for name in weights) and not stage.level_adapters:
        raise ValueError(
            f"{source} is of an online stage and holds two adapters, that of its frozen levels apart: only another "
            "online stage can start from it (the trained adapter alone is in that run's adapter folder)"
        )
    for part in stage.weight_parts:
        weights = part.starting_weights(weights)
    policy = {name: value for name, value in weights.items() if name.startswith("policy.")}
    check_complete(policy, [name for name in stage.saved_names() if name.startswith("policy.")], source)
    stage.load_state_dict(policy, strict=False)
    for part in stage.weight_parts:
        part.load(stage, weights, source)


def check_resumable(stage: Any, checkpoint: Mapping[str, Any], source: str) -> None:
    """Check that a run can continue from a checkpoint.

    Raises:
        ValueError: If it is of another stage, policy or agent, or of other settings that are fixed.
    """
    writer, name = checkpoint.get("stage"), type(stage).__name__
    if writer is not None and writer != name:
        raise ValueError(
            f"{source} was written by the stage {writer}, and this is {name}: use the config of {writer}, or start "
            f"{name} from its weights with policy.start_from"
        )
    check_source(stage, checkpoint, source)
    changed = differences(checkpoint["hyper_parameters"], stage.hparams)
    fixed = {key: values for key, values in changed.items() if key.startswith(_FIXED) and key not in _FREE}
    if fixed:
        raise ValueError(
            f"{source} is of other settings, which a run cannot change: {_listed(fixed)}; set them back, or start a "
            "new run"
        )


def check_source(stage: Any, checkpoint: Mapping[str, Any], source: str) -> None:
    """Check that a checkpoint's weights mean the same in this stage.

    Raises:
        ValueError: If they are of another base model, adapter, chat format or agent, or of critics of other features.
    """
    if not isinstance(checkpoint, Mapping) or not {IDENTITY, "hyper_parameters"} <= checkpoint.keys():
        raise ValueError(f"{source} does not say what policy it is of: expected one written by a stage of lit-rft")
    changes = identity_differences(checkpoint[IDENTITY], stage.identity)
    if changes:
        raise ValueError(
            f"{source} does not fit the model: {'; '.join(changes)} (in the checkpoint -> here); use the policy "
            "settings that it was made with, or start a new run"
        )
    agent = checkpoint.get("agent")
    if agent is not None and stage.agent is not None and agent["class_path"] != with_class(stage.agent)["class_path"]:
        raise ValueError(
            f"{source} is of the agent {agent['class_path']}, and this is {with_class(stage.agent)['class_path']}: "
            "start from another checkpoint, or set agent accordingly"
        )
    for part in stage.weight_parts:
        part.check_source(checkpoint, source)


def check_file(stage: Any, path: Path) -> None:
    """Check a checkpoint file before it is loaded into sharded weights.

    Raises:
        ValueError: If it is no file, or its weights are not those that train here.
    """
    if not path.is_file():
        raise ValueError(f"expected a checkpoint in one file, got {path}")
    checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    check_resumable(stage, checkpoint, "the checkpoint")
    check_complete(checkpoint["state_dict"], stage.saved_names(), "the checkpoint")


def check_complete(weights: Iterable[str], expected: Iterable[str], source: str) -> None:
    """Check the names of a checkpoint's weights.

    The reference adapter may come and go with `kl_coef`; without one in the checkpoint that of `policy.start_from`
    stays.

    Raises:
        ValueError: If some are missing or unknown.
    """
    names, needed = ({name for name in group if not is_reference(name)} for group in (weights, expected))
    missing, extra = sorted(needed - names), sorted(names - needed)
    if missing or extra:
        raise ValueError(
            f"{source} does not fit the model: {len(missing)} trained weights are missing (first: {missing[:1]}), "
            f"{len(extra)} are unknown (first: {extra[:1]}); use the model and LoRA settings it was made with"
        )


def _report_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Log which settings have changed since a checkpoint."""
    changed = differences(saved, current)
    changed.pop("policy.start_from", None)  # the checkpoint's weights take its place
    if changed:
        logger.info("settings changed since the checkpoint, in effect from here on: %s", _listed(changed))


def save(stage: Any, checkpoint: dict[str, Any]) -> None:
    """Keep in a checkpoint what trains, the policy's identity, and the state of the parts."""
    saved = set(stage.saved_names())
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in saved}
    checkpoint["stage"] = type(stage).__name__
    checkpoint[IDENTITY] = stage.identity
    if stage.agent is not None:
        checkpoint["agent"] = with_class(stage.agent)
    checkpoint["parts"] = {name: part.state_dict() for name, part in stage.stateful.items()}


def restore(stage: Any, checkpoint: Mapping[str, Any]) -> None:
    """Check a checkpoint of the same stage, and restore the state of the parts.

    Raises:
        ValueError: If the run cannot continue from it.
    """
    check_resumable(stage, checkpoint, "the checkpoint")
    weights = checkpoint.get("state_dict")
    if weights is not None:  # else they are sharded, and have been checked and loaded
        check_complete(weights, stage.saved_names(), "the checkpoint")
        _restore_reference(stage, weights)
    for name, part in stage.stateful.items():
        part.load_state_dict(checkpoint["parts"][name])
    if stage._trainer is not None and stage.trainer.state.fn == "fit" and stage.global_rank == 0:
        _report_changes(checkpoint["hyper_parameters"], stage.hparams)


def _restore_reference(stage: Any, weights: Iterable[str]) -> None:
    """Add the reference adapter of a checkpoint where the stage was not started from it."""
    saved = any(is_reference(name) for name in weights)
    present = any(is_reference(name) for name, _ in stage.policy.named_parameters())
    if saved and stage.needs_reference and not present:
        add_reference(stage.policy)


def load_stage(cls: type[Any], path: Any, arguments: Mapping[str, Any]) -> Any:
    """Make the stage of a checkpoint, with its weights (see `PolicyModule.load_from_checkpoint`)."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    name = checkpoint.get("stage")
    if name is not None and name != cls.__name__:
        raise ValueError(f"{path} was written by the stage {name}: use {name}.load_from_checkpoint")
    saved = rebuild_arguments(cls, checkpoint["hyper_parameters"])
    saved["policy"] = without_start(saved["policy"], checkpoint[IDENTITY])
    stage = cls(**{**saved, **arguments})
    stage.configure_model()
    stage.on_load_checkpoint(checkpoint)
    stage.load_state_dict(checkpoint["state_dict"], strict=False)
    return stage


def _listed(changes: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {values}" for key, values in changes.items())
