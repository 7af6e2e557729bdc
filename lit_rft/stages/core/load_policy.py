"""Loading of a policy by its settings, and its placement on devices."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from lit_rft.models.accel import accelerate
from lit_rft.models.backbone import (
    final_hidden_states,
    leave_casting_to_autocast,
    load_backbone,
    load_tokenizer,
    model_end_ids,
    output_logits,
)
from lit_rft.models.sharding import shard
from lit_rft.models.support import check_support
from lit_rft.stages.core.adapter_folder import check_adapter_folder, is_adapter
from lit_rft.stages.core.fsdp import FSDP2Strategy
from lit_rft.stages.core.identity import policy_identity
from lit_rft.stages.core.settings import PolicySettings
from lit_rft.transcripts import ChatFormat


def load_policy(settings: PolicySettings, precision: str) -> tuple[nn.Module, ChatFormat, dict[str, Any]]:
    """Load tokenizer and model, with the adapter of `start_from` if that is a folder.

    Args:
        settings: of the policy.
        precision: the trainer's.

    Returns:
        The model, its chat format, and its identity (see `policy_identity`).

    Raises:
        ValueError: For a precision that would need loss scaling, a model that is not supported, or an adapter that does
            not fit.
    """
    if precision.startswith("16"):
        raise ValueError(f"precision {precision!r} would need loss scaling: use bf16-mixed or 32-true")
    adapter = settings.start_from if is_adapter(settings.start_from) else None
    # under bf16-mixed a frozen backbone is kept in bf16 and its adapters in float32, like all that trains
    frozen = settings.lora is not None or adapter is not None
    half = precision == "bf16-true" or (precision == "bf16-mixed" and frozen)
    chat = ChatFormat(load_tokenizer(settings.model))
    policy = load_backbone(
        settings.model,
        dtype=torch.bfloat16 if half else torch.float32,
        lora=settings.lora,
        adapter=adapter,
        attention=settings.attention,
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    check_support(policy)
    chat.add_end_ids(model_end_ids(policy))
    if precision == "bf16-mixed" and frozen:
        leave_casting_to_autocast(policy)
    policy.train()  # as Lightning expects; it switches to evaluation itself
    identity = policy_identity(policy, chat, settings.model)
    identity["adapter_from_folder"] = adapter is not None
    if adapter is not None:
        check_adapter_folder(Path(adapter), policy, identity, settings)
    return policy, chat, identity


def place_policy(stage: Any) -> None:
    """Shard the policy of a stage if its strategy does so, and switch its fast paths on.

    Raises:
        ValueError: For another sharding strategy than `FSDP2Strategy`.
    """
    trainer = stage._trainer  # None outside a trainer, where `stage.trainer` raises
    half = torch.bfloat16 if stage.precision.startswith("bf16") else None
    sharded = trainer is not None and isinstance(trainer.strategy, ModelParallelStrategy)
    if sharded:
        if not isinstance(trainer.strategy, FSDP2Strategy):  # shards other parts, and does not check checkpoints
            raise ValueError("use lit_rft.stages.FSDP2Strategy (fsdp.yaml) in place of ModelParallelStrategy")
        shard(stage.policy, stage.device_mesh["data_parallel"], half=half)
    device = trainer.strategy.root_device if trainer is not None else None
    accelerate(stage.policy, stage.policy_settings.accelerate, device=device, dtype=half, sharded=sharded)


def zero_loss(policy: nn.Module) -> Tensor:
    """Return a loss of 0 with a gradient for all weights of a policy."""
    ids = torch.zeros((1, 1), dtype=torch.long, device=next(policy.parameters()).device)
    hidden = final_hidden_states(policy, ids, ids)
    return 0.0 * (hidden.sum() + output_logits(policy, hidden).sum())
