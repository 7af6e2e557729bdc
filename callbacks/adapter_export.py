"""The trained policy as a folder that PEFT, transformers and inference servers load."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from lit_rft.models.sharding import full_state, sharded_parts


class AdapterExport(L.Callback):
    """Writes the policy's adapter (or, without LoRA, the whole model) and tokenizer when training ends.

    `AutoPeftModelForCausalLM.from_pretrained(folder)` loads an adapter, `AutoModelForCausalLM` a whole model, and a
    next stage takes an adapter's folder as `policy.start_from`. Works with any module that has `policy` (a transformers
    or PEFT model) and `chat` (a `ChatFormat`).

    Args:
        folder: where to; null for `<default_root_dir>/adapter`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        policy: Any = pl_module.policy
        weights = full_state(policy) if sharded_parts(policy) else None  # from all processes
        if trainer.is_global_zero:
            target = Path(self.folder or os.path.join(trainer.default_root_dir, "adapter"))
            _replace_folder(target, lambda part: _save(pl_module, part, weights))


def _save(stage: Any, folder: Path, weights: dict[str, Tensor] | None) -> None:
    stage.policy.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
    stage.chat.tokenizer.save_pretrained(folder)


def _replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place, then swap: what has the folder's name is never half written.

    A process killed between the two renames leaves the old one as `.<name>.old`; the next call puts it back first.
    """
    partial, old = (target.with_name(f".{target.name}.{word}") for word in ("partial", "old"))
    if old.exists() and not target.exists():
        old.rename(target)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
