"""The trained policy as a folder for PEFT, transformers and inference servers."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from lit_rft._files import write_json
from lit_rft.callbacks.dry_run import is_dry_run
from lit_rft.callbacks.model_card import model_card, name_base_model
from lit_rft.callbacks.signals import StoppedBySignal
from lit_rft.models.reference import REFERENCE
from lit_rft.models.sharding import full_state, sharded_parts

logger = logging.getLogger(__name__)


class AdapterExport(L.Callback):
    """Writes the policy's adapter (or, without LoRA, the full model) and tokenizer when training ends.

    The next stage loads an adapter's folder as `policy.start_from`; its model card (README.md) describes training,
    results and loading. The adapter names its base model like `policy.model`, never by a cache folder: if that is a hub
    id, `AutoPeftModelForCausalLM.from_pretrained(folder)` loads it as well. Works with any module that has `policy` (a
    transformers or PEFT model) and `chat` (a `ChatFormat`).

    Also written when a signal stops the run, with the weights of the last complete step.

    Args:
        folder: target folder, of this export alone; null for `<default_root_dir>/adapter`. An earlier export there is
            replaced.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the target before training, in all processes.

        Raises:
            FileExistsError: For a folder that holds something else than an earlier export, the run itself, or the model
                that it starts from.
        """
        if is_dry_run(trainer):
            return
        target = self._target(trainer)
        used = [trainer.default_root_dir, *(getattr(part, "dirpath", None) for part in trainer.checkpoint_callbacks)]
        if (settings := getattr(pl_module, "policy_settings", None)) is not None:
            used += [settings.model, settings.start_from]
        for folder in (Path(name).resolve() for name in used if name is not None):
            if target.resolve() in (folder, *folder.parents):
                raise FileExistsError(_refusal(target, f"{folder}, which this run uses"))
        check_replaceable(target)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._export(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # nothing new before the first step, or in evaluation
        if isinstance(exception, StoppedBySignal) and trainer.state.fn == "fit" and trainer.global_step > 0:
            together = trainer.world_size == 1 or trainer.training  # otherwise weights cannot be gathered
            if together and getattr(pl_module, "policy", None) is not None:
                self._export(trainer, pl_module)

    def _export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_dry_run(trainer):  # a dry run must not replace an adapter
            return
        policy: Any = pl_module.policy
        weights = full_state(policy) if sharded_parts(policy) else None  # from all processes
        if trainer.is_global_zero:
            _replace_folder(self._target(trainer), lambda part: _save(trainer, pl_module, part, weights))

    def _target(self, trainer: L.Trainer) -> Path:
        return Path(self.folder or os.path.join(trainer.default_root_dir, "adapter"))


_MARK = "export.json"  # of an export by a module that writes no record of its policy
_MARKS = ("policy.json", _MARK)


def check_replaceable(target: Path) -> None:
    """Check that an export deletes nothing but an earlier export.

    Raises:
        FileExistsError: For a file, or a folder with other contents.
    """
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir())
        if names and not any(mark in names for mark in _MARKS):
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise FileExistsError(_refusal(target, listed))
    elif target.exists():
        raise FileExistsError(_refusal(target, "a file"))


def _refusal(target: Path, contents: str) -> str:
    return (
        f"AdapterExport.folder: expected a folder that is new, empty or an earlier export, as it is replaced; {target} "
        f"holds {contents}: set another folder, or a new one within it"
    )


def _save(trainer: Any, stage: Any, folder: Path, weights: dict[str, Tensor] | None) -> None:
    options: dict[str, Any] = {} if weights is None else {"state_dict": weights}
    if hasattr(stage.policy, "peft_config"):  # without the reference adapter, which is not a result
        options["selected_adapters"] = [name for name in stage.policy.peft_config if name != REFERENCE]
    stage.policy.save_pretrained(folder, **options)
    stage.chat.tokenizer.save_pretrained(folder)
    settings = getattr(stage, "policy_settings", None)
    if settings is None:  # a user-defined module
        write_json(folder / _MARK, {"module": type(stage).__name__})
        return
    adapter = (folder / "adapter_config.json").is_file()
    name_base_model(folder, settings.model)
    metrics = trainer.callback_metrics
    card = model_card(stage, trainer.datamodule, trainer.global_step, settings.model, adapter, metrics)
    (folder / "README.md").write_text(card, encoding="utf-8")
    stage.save_record(folder)


def _replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder under a temporary name, then swap: the target folder is never incomplete.

    A process killed between the two renames leaves the old folder as `.<name>.old`, restored by the next call. If the
    target holds something else by now, the export stays under its temporary name: an exception would cost the run its
    last checkpoint.
    """
    partial, old = (target.with_name(f".{target.name}.{word}") for word in ("partial", "old"))
    if old.exists() and not target.exists():
        old.rename(target)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    try:
        check_replaceable(target)
    except FileExistsError as error:
        logger.error("%s; the export of this run is in %s", error, partial)
        return
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
