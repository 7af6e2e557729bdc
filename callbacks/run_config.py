"""The configuration of each verb, and the environment of training, in the run's folder."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

import lit_rft
from lit_rft._files import replacing, write_json
from lit_rft._machine import describe_machine

logger = logging.getLogger(__name__)

# Keys of one call, not of the run: with them a config would not fit other verbs, or would resume unintentionally.
_OF_ONE_CALL = ("ckpt_path", "overwrite", "return_predictions", "verbose", "weights_only")


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` when training starts, and `config_validate.yaml`, `config_test.yaml`, `config_predict.yaml`.

    Every verb accepts each of them with `-c`. They are in `trainer.default_root_dir`. A rejected training run leaves
    the existing file unchanged; a resumed one with other settings keeps it as `config.1.yaml` and so on.
    `environment.json` has versions, devices and memory of the last training process.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        verb = TrainerFn(stage).value
        if verb != "fit":
            self._write(trainer, f"config_{verb}.yaml")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, "config.yaml")
        if trainer.is_global_zero:
            write_json(Path(trainer.default_root_dir, "environment.json"), describe_machine() | _devices(trainer))
            logger.info("%s", start_line(trainer, pl_module))

    def _write(self, trainer: L.Trainer, name: str) -> None:
        if not trainer.is_global_zero:
            return
        config = self.config.clone()
        for key in _OF_ONE_CALL:
            config.pop(key, None)
        _leave_folder_to_the_run(config)
        text = f"# lit-rft {lit_rft.__version__}\n" + self.parser.dump(config, skip_none=False, skip_validation=True)
        path = Path(trainer.default_root_dir, name)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "config.yaml" and path.is_file():
            path.rename(_unused(path))
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _devices(trainer: L.Trainer) -> dict[str, Any]:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "processes": trainer.world_size, "precision": str(trainer.precision)}


def start_line(trainer: L.Trainer, module: L.LightningModule) -> str:
    """Return what is about to train, and where, in one line."""
    facts = _devices(trainer)
    weights = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    devices = f"{facts['processes']} x {facts['device']}" if facts["processes"] > 1 else facts["device"]
    return (
        f"{type(module).__name__} on {devices}, {facts['precision']}: {weights:,} weights, "
        f"{trained:,} train; from step {trainer.global_step}, in {trainer.default_root_dir}"
    )


def _leave_folder_to_the_run(config: Any) -> None:
    """Remove a logger's folder if it is the run's: with another `default_root_dir` it follows that one."""
    loggers = config.trainer.logger
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        settings = getattr(logger, "init_args", None)
        if settings is not None and settings.get("save_dir") == config.trainer.default_root_dir:
            settings["save_dir"] = ""


def _unused(path: Path) -> Path:
    number = 1
    while (other := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return other
