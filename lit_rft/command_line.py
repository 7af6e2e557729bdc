"""LightningCLI for the stages; separate from `lit_rft.cli` because importing it takes seconds."""

import importlib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from lit_rft._files import checkpoints_below
from lit_rft.callbacks.run_checkpoint import RunCheckpoint
from lit_rft.callbacks.run_config import RunConfig
from lit_rft.cli import VERBS, config_folder
from lit_rft.config_files import named_classes, prepare_arguments, read_configs
from lit_rft.config_origin import name_file
from lit_rft.config_parser import ExplainingParser, flat_values, give_folder
from lit_rft.error_messages import UsageError, innermost, is_meant_for_users, with_full_key
from lit_rft.stages.core.policy import PolicyModule


class StageCLI(LightningCLI):
    """Reads base.yaml before all other configs, and passes the stage's shared settings to the data module.

    Args:
        arguments: of the command line, configs by path.
        run: run the verb at the beginning of `arguments`; False: expect no verb and only build trainer, model and data.
    """

    def __init__(self, arguments: Sequence[str], run: bool = True) -> None:
        self._arguments = list(arguments)
        base = {"default_config_files": [str(config_folder() / "base.yaml")]}
        super().__init__(
            model_class=PolicyModule,
            datamodule_class=L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=RunConfig,
            parser_class=ExplainingParser,
            parser_kwargs=dict.fromkeys(VERBS, base) if run else base,
            args=prepare_arguments(arguments),
            run=run,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse.

        Raises:
            UsageError: For a wrong key; the message names its file.
        """
        assert isinstance(parser, ExplainingParser)
        parser.know_classes(named_classes(read_configs(self._arguments), self._arguments))
        try:
            super().parse_arguments(parser, args)
        except UsageError as error:
            raise UsageError(self._with_file(str(error))) from error

    def _with_file(self, message: str) -> str:
        layers = [layer for file in read_configs(self._arguments) for layer in file.layers]
        return name_file(message, layers, self._arguments)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UsageError(self._with_file(f"seed_everything: {error}")) from error

    def instantiate_classes(self) -> None:
        """Instantiate trainer, model and data.

        Raises:
            UsageError: For a value that a class rejects; the message names its key.
        """
        try:
            super().instantiate_classes()
        except Exception as error:
            if not is_meant_for_users(error) or isinstance(error, UsageError):
                raise
            config = self.config[self.subcommand] if self.subcommand else self.config
            raise UsageError(self._with_file(with_full_key(innermost(str(error)), flat_values(config)))) from error

    def before_instantiate_classes(self) -> None:
        """Remove the defaults of base.yaml that the trainer's settings exclude."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        join_callbacks(config.trainer)
        drop_defaults(config.trainer)
        give_folder(config.trainer.logger, config.trainer.default_root_dir)
        if config.get("ckpt_path") == "best" and self.subcommand != "fit":
            config.ckpt_path = best_checkpoint(config.trainer)
        check_checkpoint(config.get("ckpt_path"))

    def _parse_ckpt_path(self) -> None:
        """Skip Lightning's own step, which reads hyper-parameters from checkpoints.

        The configuration takes precedence; the stage reports differences.
        """

    def before_fit(self) -> None:
        """Check the run's folder before anything is loaded or deleted.

        Raises:
            FileExistsError: If the folder contains another run.
        """
        config = self.config_init[self.subcommand]
        ckpt_path = config.get("ckpt_path")
        overwrite = config["overwrite"] and ckpt_path is None
        if not overwrite:
            check_csv_files(self.trainer)
        callbacks = [part for part in self.trainer.callbacks if isinstance(part, RunCheckpoint)]  # type: ignore[attr-defined]
        for callback in callbacks or [RunCheckpoint()]:  # runs without checkpoints still write curves and an adapter
            if overwrite:  # in all processes, which wait for the removal
                callback.remove_run(self.trainer)
            if self.trainer.is_global_zero:
                callback.check_folder(self.trainer, ckpt_path)

    def before_validate(self) -> None:
        """Replace Lightning's list of metrics by the table of scores."""
        check_csv_files(self.trainer)
        self.config_init[self.subcommand]["verbose"] = False

    before_test = before_validate

    def before_predict(self) -> None:
        """Keep no results in memory: callbacks write them."""
        check_csv_files(self.trainer)
        self.config_init[self.subcommand]["return_predictions"] = False

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        help_text = "fit: remove the output of an earlier run in the same folder when training starts"
        parser.add_argument("--overwrite", type=bool, default=False, help=help_text)


def join_callbacks(trainer: Any) -> None:
    """Let a further entry of one of our callbacks replace the earlier one: none is there twice.

    Of a file it contains the settings of the earlier one (`config_layers.keep_callback_settings`).

    Args:
        trainer: the parsed configuration's part.
    """
    if not isinstance(trainer.callbacks, list):
        return
    joined: list[Any] = []
    ours: dict[str, Any] = {}  # by name: a class has several import paths
    for callback in trainer.callbacks:
        package, _, name = callback.class_path.rpartition(".")
        is_ours = package.split(".")[0] == "lit_rft"
        earlier = ours.get(name) if is_ours else None  # another class may have the name
        if earlier is None:
            joined.append(callback)
            if is_ours:
                ours[name] = callback
        elif "init_args" in callback:
            earlier["init_args"] = callback.init_args
    trainer.callbacks = joined


_OF_BAREBONES = ("logger", "log_every_n_steps", "num_sanity_val_steps", "enable_model_summary", "enable_checkpointing",
                 "enable_progress_bar")  # fmt: skip


def drop_defaults(trainer: Any) -> None:
    """Drop defaults of base.yaml that Lightning rejects together with some settings of the trainer.

    Args:
        trainer: the trainer's part of the parsed configuration.
    """
    if trainer.barebones:
        for name in _OF_BAREBONES:
            trainer[name] = None
    unwanted = set()
    if trainer.barebones or trainer.enable_checkpointing is False:
        unwanted.add("lit_rft.callbacks.RunCheckpoint")
    if trainer.barebones or trainer.enable_progress_bar is False:
        unwanted |= {f"lightning.pytorch.callbacks.{name}" for name in ("RichProgressBar", "TQDMProgressBar")}
        unwanted.add("lit_rft.callbacks.RunProgressBar")
    if isinstance(trainer.callbacks, list):
        trainer.callbacks = [callback for callback in trainer.callbacks if callback.class_path not in unwanted]


def check_csv_files(trainer: L.Trainer) -> None:
    """Check that no `CSVLogger` deletes the curves of training: with a fixed version it begins by removing its file.

    Raises:
        UsageError: If one would.
    """
    for logger in trainer.loggers if trainer.is_global_zero else ():  # it writes the files
        file = Path(logger.log_dir, "metrics.csv") if isinstance(logger, CSVLogger) else None
        if file is not None and file.is_file() and "train/" in file.read_text(encoding="utf-8").partition("\n")[0]:
            raise UsageError(
                f"trainer.logger: CSVLogger would delete {file}, the curves of training: remove its version (each "
                "process then writes into a folder version_<n>, and `lit-rft show` joins them), set another one, or "
                "move the file"
            )


def best_checkpoint(trainer: Any) -> str:
    """Return the file of a run's best checkpoint. Lightning knows it in the process that wrote it alone.

    Args:
        trainer: the parsed configuration's part.

    Raises:
        UsageError: There is none.
    """
    settings = [part.get("init_args") or {} for part in trainer.callbacks or [] if "RunCheckpoint" in part.class_path]
    folder = next((part["dirpath"] for part in settings if part.get("dirpath")), None)
    file = Path(folder or Path(trainer.default_root_dir, "checkpoints"), "best.ckpt")
    if not file.is_file():
        raise UsageError(
            f"ckpt_path: there is no {file}; `fit` writes it with a RunCheckpoint whose `monitor` is a logged metric"
        )
    return str(file)


def check_checkpoint(path: Any) -> None:
    """Check that a checkpoint exists; Lightning resolves `last` and other keywords.

    Raises:
        UsageError: For a missing file, the folder of a run, or `best`, which Lightning knows within one process only.
    """
    name = "" if path is None else str(path)
    if name == "best":
        raise UsageError("ckpt_path: expected last or a file, got best: name the run's checkpoints/best.ckpt")
    if name and (advice := checkpoints_below(Path(name))):
        raise UsageError(f"ckpt_path: {path} is the folder of a run, not a checkpoint{advice}")
    if (os.sep in name or name.endswith(".ckpt")) and not Path(name).exists():
        raise UsageError(f"ckpt_path: there is no file {path}; expected a checkpoint, or last for the run's latest one")


def build(arguments: Sequence[str], run: bool) -> StageCLI:
    """Run a command, or build its objects, with readable console output."""
    from rich.logging import RichHandler

    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    logging.getLogger("lit_rft").setLevel(logging.INFO)
    quiet_libraries()
    know_short_names()
    return StageCLI(arguments, run)


def know_short_names() -> None:
    """Import every stage, data module and callback: the parser knows the short names of imported classes only."""
    for package in ("stages", "datamodules", "callbacks"):
        module = importlib.import_module(f"lit_rft.{package}")
        for name in module.__all__:
            getattr(module, name)


def quiet_libraries() -> None:
    """Suppress hints and warnings between libraries on the console."""
    from transformers.utils import logging as transformers_logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    library: Any
    for library in ("lightning", "transformers", "torch"):
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=library)
    warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    # batch indices of our loaders are not used
    warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
