"""The base class of all stages: a language-model policy that is trained, evaluated and checkpointed."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_rft._files import write_json
from lit_rft._phases import Phases
from lit_rft.agents import Agent
from lit_rft.models.reference import add_reference, check_reference, is_reference
from lit_rft.objectives import Sums
from lit_rft.rollouts.policy import Policy
from lit_rft.rollouts.rollout import Rollout
from lit_rft.rollouts.sources import CountsEnvSteps, RolloutSource
from lit_rft.stages.core import checkpoints
from lit_rft.stages.core.adamw import apply_settings, check_trainer, make_optimizer
from lit_rft.stages.core.adapter_folder import RECORD, is_adapter
from lit_rft.stages.core.data_check import (
    BatchCheck,
    BatchKind,
    check_data_module,
    check_positions,
    check_tokenizer,
    warn_of_positions,
)
from lit_rft.stages.core.data_position import count_epochs, restore_position
from lit_rft.stages.core.evaluate import Evaluator, log_scores
from lit_rft.stages.core.finite import check_rewards
from lit_rft.stages.core.hyper_parameters import constructor_arguments, effective
from lit_rft.stages.core.identity import current_fingerprint
from lit_rft.stages.core.load_policy import load_policy, place_policy
from lit_rft.stages.core.optimize import LossFunction, optimize
from lit_rft.stages.core.parts import Stateful, WeightPart
from lit_rft.stages.core.settings import BatchingSettings, OptimizerSettings, PolicySettings
from lit_rft.transcripts import ChatFormat, StepBatch, Transcript, TranscriptBatch, step_batch

if TYPE_CHECKING:
    from typing_extensions import Self


class PolicyModule(L.LightningModule):
    """A language model, with or without adapters, as the policy of a stage.

    A stage writes `training_step` and sets its parts in the constructor: an `evaluator` for validation, test and
    predict, a `source` of rollouts if it has one, `weight_parts` and `stateful` parts. Optimisation is manual:
    `optimize` makes one optimiser step, however many micro-batches and processes share it.

    Args:
        policy: model and initial weights.
        optimizer: AdamW and its schedule.
        batching: micro-batches of an optimiser step.
    """

    agent: Agent | None = None  # of a stage that acts in environments
    training_batch: BatchKind | None = None  # of the batches that `training_step` needs
    evaluator: Evaluator | None = None
    source: RolloutSource | None = None
    weight_parts: Sequence[WeightPart] = ()
    level_adapters: Mapping[str, str] = {}  # adapters of levels that do not act with the one that trains
    needs_reference = False  # whether a frozen copy of the policy at the start of the stage is kept
    steps_per_batch = 1  # optimiser steps per batch of data
    single_steps = 0  # number of first batches that make one optimiser step each
    tokens_trained = 0  # of this process, in the optimiser steps of this run
    strict_loading = False  # checkpoints contain what trains; `on_load_checkpoint` checks that it is complete

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        batching: BatchingSettings | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.batching = batching or BatchingSettings()
        self.policy_settings = policy or PolicySettings()
        self.policy: nn.Module | None = None
        self.chat: ChatFormat | None = None
        self.samples: list[Rollout] = []  # of the last training step, for callbacks
        self.phases = Phases()  # of the current training step
        self.stateful: dict[str, Stateful] = {}
        self.identity: dict[str, Any] = {}  # of the policy, once it is loaded
        self._check_batch = BatchCheck()
        self._checkpoint_step = 0  # of the checkpoint that was loaded, or at the end of training
        self._arguments = constructor_arguments(self)
        self.save_hyperparameters(effective(self, self._arguments))

    # --- for training steps ------------------------------------------------------------------------------------------

    def current_policy(self) -> Policy:
        """Return the policy as rollout sources and evaluators take it."""
        assert self.policy is not None and self.chat is not None, "configure_model has not been called"
        kind = f"{self.precision}/{self.policy_settings.attention}"
        step = self.global_step if self._trainer is not None else 0
        return Policy(self.policy, self.chat, step, self.level_adapters, kind, self.policy_source, phases=self.phases)

    def optimize(self, batches: Iterable[TranscriptBatch], loss: LossFunction) -> Sums:
        """Make one optimiser step (see `lit_rft.stages.core.optimize`)."""
        with self.phases.measure("update"):
            return optimize(self, batches, loss)

    def step_batch(self, transcripts: Sequence[Transcript], num_utterances: dict[str, int]) -> StepBatch:
        """Split this process's transcripts of an optimiser step into micro-batches, on the module's device.

        Args:
            transcripts: of this process.
            num_utterances: of each level, over all processes.
        """
        tokens, packing = self.batching.micro_batch_tokens, self.batching.packing
        batch = step_batch(transcripts, num_utterances, micro_batch_tokens=tokens, pad_id=0, packing=packing)
        return batch.to(self.device)

    def check_rewards(self, rollouts: Sequence[Rollout]) -> None:
        """Stop all processes (`NonFiniteLossError`) if a reward is not finite in one of them."""
        check_rewards(self.current_policy(), rollouts)

    def log_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Log metrics of a training step, against the number of optimiser steps after it."""
        self.log("step", float(self.global_step))
        for name, value in terms.items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "reward"))

    def log_source(self) -> None:
        """Log the metrics of the last rollouts; those of episodes against environment steps, too."""
        assert self.source is not None
        metrics = self.source.metrics
        self.log_dict({f"train/{name}": value for name, value in metrics.items()})
        env_steps = self.source.env_steps if isinstance(self.source, CountsEnvSteps) else 0
        for logger in self.loggers if "score" in metrics else ():
            logger.log_metrics({"online/score": float(metrics["score"])}, step=env_steps)

    # --- the model ---------------------------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        return self.policy_settings.model

    @property
    def precision(self) -> str:
        """The trainer's precision."""
        return str(self.trainer.precision) if self._trainer is not None else "32-true"

    @property
    def num_tokens(self) -> int | None:
        """Tokens of `samples`, prompts included; None without samples."""
        lengths = [len(transcript) for rollout in self.samples for transcript in rollout.transcripts]
        return sum(lengths) if lengths else None

    def configure_model(self) -> None:
        """Load tokenizer and model, once, and the weights to start from."""
        if self.policy is not None:
            return
        self.policy, self.chat, self.identity = load_policy(self.policy_settings, self.precision)
        self.save_hyperparameters(effective(self, self._arguments))  # by now with defaults in place of None
        if self.needs_reference:
            check_reference(self.policy)
        for part in self.weight_parts:
            part.add(self)
        start = self.policy_settings.start_from
        if start is not None and not is_adapter(start):
            checkpoints.load_start(self, Path(start))
        if self.needs_reference and start is not None:
            add_reference(self.policy)
        place_policy(self)

    def saved_names(self) -> list[str]:
        """Return the names of the weights in checkpoints; all others are loaded by the model's name."""
        names = [name for name, p in self.named_parameters() if p.requires_grad or is_reference(name)]
        everything = [name for name, _ in self.named_parameters()]
        return names + [name for part in self.weight_parts for name in part.saved_names(everything)]

    # --- optimiser and data ------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[L.Callback]:
        """Check what is to train and the trainer; later, data would be read, and Lightning recommend other settings."""
        if self.trainer.state.fn == "fit":
            self.check_training()
        check_trainer(self.trainer)
        return []

    def check_training(self) -> None:
        """Refuse, before data are collected or read, what evaluation may use and training may not."""
        if self.source is not None and self.precision == "bf16-true":
            raise ValueError("precision bf16-true would keep rewards and advantages in three digits: use bf16-mixed")

    def configure_optimizers(self) -> Any:
        return make_optimizer(self)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what trains, each part with its learning rate; gradients are clipped part by part."""
        groups = [group for part in self.weight_parts for group in part.parameter_groups()]
        others = {id(parameter) for group in groups for parameter in group["params"]}
        policy = [p for p in self.parameters() if p.requires_grad and id(p) not in others]
        return [{"params": policy, "lr": self.optimizer_settings.learning_rate, "name": "policy"}, *groups]

    def setup(self, stage: str) -> None:
        kinds = {"evaluation_batch": None if self.evaluator is None else self.evaluator.batch_kind}
        check_data_module(self, kinds | ({"training_batch": self.training_batch} if stage == "fit" else {}))

    def on_fit_start(self) -> None:
        warn_of_positions(self)
        if self.evaluator is not None:
            self.evaluator.weights_changed()

    def on_train_start(self) -> None:
        restore_position(self.trainer)
        apply_settings(self)
        check_tokenizer(self)
        check_positions(self)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._check_batch(self, batch, self.training_batch)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def on_train_end(self) -> None:
        """Keep the number of optimiser steps for later evaluations."""
        self._checkpoint_step = self.global_step

    def on_validation_start(self) -> None:
        check_tokenizer(self)
        check_positions(self)
        if self.evaluator is not None:
            self.evaluator.begin(self.current_policy())

    on_test_start = on_predict_start = on_validation_start

    def _evaluate(self, batch: Any, batch_idx: int, num_batches: Sequence[int | float]) -> list[Any]:
        if self.evaluator is None:
            raise ValueError(f"{type(self).__name__} has no evaluator: set limit_val_batches=0, or give it one")
        self._check_batch(self, batch, self.evaluator.batch_kind)
        with torch.no_grad(), self.phases.measure("evaluation"):
            return self.evaluator.step(batch, batch_idx, int(num_batches[0]))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        trainer = self.trainer
        numbers = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._evaluate(batch, batch_idx, numbers)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx, self.trainer.num_test_batches)

    def predict_step(self, batch: Any, batch_idx: int) -> list[Any]:
        return self._evaluate(batch, batch_idx, self.trainer.num_predict_batches)

    def _end_evaluation(self, verb: str, prefix: str = "") -> None:
        if self.evaluator is None:
            return
        self.evaluator.end(verb)
        if prefix:
            scalars = {f"{prefix}/{name}": value for name, value in self.evaluator.scalars().items()}
            log_scores(self, scalars, rank_zero_only=True)

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("" if self.trainer.sanity_checking else "validate", "val")

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test", "test")

    def on_predict_epoch_end(self) -> None:
        self._end_evaluation("predict")

    @property
    def trained_steps(self) -> int:
        """Number of optimiser steps of the weights: outside `fit` those of the checkpoint, or of the fit before."""
        training = self._trainer is not None and self.trainer.state.fn == "fit"
        return self.global_step if training else self._checkpoint_step

    def policy_source(self) -> dict[str, Any]:
        """Return what identifies the policy in records. All processes must call this."""
        assert self.policy is not None
        return {
            "model": self.policy_settings.model,
            "start_from": self.policy_settings.start_from,
            "checkpoint_step": self.trained_steps,
            "weights": current_fingerprint(self.policy),
        }

    def evaluation_source(self) -> dict[str, Any]:
        """Return what results of `predict` depend on, for records. All processes must call this."""
        return self.policy_source() | ({} if self.evaluator is None else self.evaluator.settings())

    def teardown(self, stage: str) -> None:
        """Stop the worker processes of the parts."""
        for part in (self.evaluator, self.source):
            if part is not None:
                part.close()

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains, the policy's identity, and the state of the parts."""
        checkpoints.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this stage and policy, and restore the state of the parts."""
        count_epochs(checkpoint)
        checkpoints.restore(self, checkpoint)
        self._checkpoint_step = int(checkpoint.get("global_step", 0))

    def check_file(self, path: Path) -> None:
        """Check a checkpoint file before it is loaded (`FSDP2Strategy` calls this)."""
        checkpoints.check_file(self, path)

    def save_record(self, folder: Path) -> None:
        """Write the policy's identity into the folder of an exported adapter; `policy.start_from` compares it."""
        write_json(folder / RECORD, self.identity)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = None, **arguments: Any
    ) -> "Self":
        """Make the stage of a checkpoint, with its weights.

        Args:
            checkpoint_path: the file.
            map_location: device of the stage; default: the CPU.
            **arguments: of the constructor, in place of the checkpoint's.

        Raises:
            ValueError: If the checkpoint is of another stage, or its base model has changed.
        """
        stage: Self = checkpoints.load_stage(cls, checkpoint_path, arguments)
        return stage if map_location is None else stage.to(map_location)
