"""LightningCLI for the stages; apart from `lit_rft.cli` because importing it takes seconds."""

import difflib
import importlib
import inspect
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_rft.callbacks.run_checkpoint import RunCheckpoint
from lit_rft.callbacks.run_config import RunConfig
from lit_rft.cli import config_folder
from lit_rft.stages.policy import PolicyModule
from lit_rft.stages.settings import PolicySettings

_VERBS = ("fit", "validate", "test", "predict")


class ExplainingParser(LightningArgumentParser):
    """Says what is allowed where something is not, in place of a page of usage."""

    def print_usage(self, file: Any = None) -> None:
        print("usage: lit-rft VERB [-c CONFIG]... [--KEY VALUE]...", file=file)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        keys = [action.dest for action in self._actions]
        super().error(message + explain(message, keys), ex)


def explain(message: str, keys: Sequence[str]) -> str:
    """What a parser's message about an unknown key leaves out: which keys there are, and which was meant."""
    if found := re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message):
        owner, wrong = found.groups()
        module, _, name = owner.rpartition(".")
        thing = getattr(importlib.import_module(module), name)
        allowed = [key for key in inspect.signature(thing).parameters if key != "self"]
        return f"\n{name} has no {wrong!r}; it has: {', '.join(allowed)}{_meant(wrong, allowed)}"
    if found := re.search(r"(?:does not accept option '|unrecognized arguments: --)([\w.]+)", message):
        wrong = found.group(1)
        section = wrong.rpartition(".")[0]
        allowed = [key for key in keys if key.rpartition(".")[0] == section and key not in ("help", "print_config")]
        return f"\n{section or 'the configuration'} has: {', '.join(allowed)}{_meant(wrong, allowed)}"
    return ""


def _meant(wrong: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, allowed, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class StageCLI(LightningCLI):
    """Reads base.yaml under all other configs, and gives the data module what it must share with the stage.

    Args:
        arguments: of the command line, configs by path.
        run: run the verb that `arguments` begin with; False: take no verb and only build trainer, model and data.
    """

    def __init__(self, arguments: Sequence[str], run: bool = True) -> None:
        base = {"default_config_files": [str(config_folder() / "base.yaml")]}
        super().__init__(
            model_class=PolicyModule,
            datamodule_class=L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=RunConfig,
            parser_class=ExplainingParser,
            parser_kwargs=dict.fromkeys(_VERBS, base) if run else base,
            args=list(arguments),
            run=run,
        )

    def _parse_ckpt_path(self) -> None:
        """Leave out Lightning's own step: the configuration counts, and not the hyper-parameters that a checkpoint
        has; the stage says where they differ."""

    def before_fit(self) -> None:
        """Raises: FileExistsError if the folder holds another run, before anything is loaded or lost."""
        config = self.config_init[self.subcommand]
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunCheckpoint):
                if config["overwrite"] and config["ckpt_path"] is None and self.trainer.is_global_zero:
                    callback.remove_run(self.trainer)
                if self.trainer.is_global_zero:
                    callback.check_folder(self.trainer, config["ckpt_path"])

    def before_validate(self) -> None:
        """Our own table of scores takes the place of Lightning's list of metrics."""
        self.config_init[self.subcommand]["verbose"] = False

    before_test = before_validate

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        help_text = "fit: remove the checkpoints and curves of an earlier run in the same folder"
        parser.add_argument("--overwrite", type=bool, default=False, help=help_text)
        parser.link_arguments("trainer.default_root_dir", "trainer.logger.init_args.save_dir")
        parser.link_arguments("model.init_args.policy", "data.init_args.model", compute_fn=_model_name)
        parser.link_arguments("model.init_args.hierarchy", "data.init_args.hierarchy")
        parser.link_arguments("model.init_args.prompts", "data.init_args.prompts")


def _model_name(policy: Any) -> str:
    """The model's name out of a stage's `policy`, which the parser may have wrapped as class_path and init_args."""
    settings = getattr(policy, "init_args", policy)
    name: str = PolicySettings().model if settings is None else settings.model
    return name


def build(arguments: Sequence[str], run: bool) -> StageCLI:
    """Run a verb, or build its objects, with a console that a person likes to read."""
    from rich.logging import RichHandler

    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    logging.getLogger("lit_rft").setLevel(logging.INFO)
    quiet_libraries()
    return StageCLI(arguments, run)


def quiet_libraries() -> None:
    """Keep the console for what concerns the user: no hints, and no notes from one library to another."""
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
    warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")  # of our loaders; nobody needs them
