"""A module around one language-model policy: made from its name, started from anything, saved small."""

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from lit_rft._files import write_json
from lit_rft.models.accel import accelerate
from lit_rft.models.backbone import (
    final_hidden_states,
    leave_casting_to_autocast,
    load_backbone,
    load_tokenizer,
    model_end_ids,
    output_logits,
)
from lit_rft.models.reference import add_reference, is_reference
from lit_rft.models.sharding import shard
from lit_rft.stages.adapter_folder import RECORD, check_adapter_folder, is_adapter, without_start
from lit_rft.stages.data_check import DataCheckedModule
from lit_rft.stages.fsdp import FSDP2Strategy
from lit_rft.stages.hyper_parameters import constructor_arguments, differences, effective, rebuild_arguments
from lit_rft.stages.identity import identity_differences, policy_identity
from lit_rft.stages.settings import BatchingSettings, OptimizerSettings, PolicySettings
from lit_rft.transcripts import ChatFormat, StepBatch, Transcript, step_batch

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

# Settings that say what saved weights mean: a run cannot go on with others. All else may be changed on resume.
_FIXED = ("agent", "critic.features", "critic.per_level")
_FREE = ("agent.init_args.max_length",)
_POLICY_RECORD = "policy"  # key of the policy's identity in a checkpoint


class PolicyModule(DataCheckedModule):
    """A language model, with or without adapters, as the policy of a stage.

    Args:
        policy: which model, and from where it starts.
        optimizer: AdamW and its schedule.
        batching: micro-batches of an optimiser step.
    """

    needs_reference = False  # whether a frozen copy of the policy at the start of the stage is kept
    strict_loading = False  # checkpoints hold what trains; `on_load_checkpoint` checks that it is all there

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        batching: BatchingSettings | None = None,
    ) -> None:
        super().__init__(optimizer or OptimizerSettings())
        self.batching = batching or BatchingSettings()
        self.policy_settings = policy or PolicySettings()
        self.policy: nn.Module | None = None
        self.chat: ChatFormat | None = None
        self._checkpoint_step = 0  # of the checkpoint that was loaded
        self._identity: dict[str, Any] = {}  # of the policy, once it is made
        self._arguments = constructor_arguments(self)
        self.save_hyperparameters(effective(self, self._arguments))

    @property
    def model_name(self) -> str:
        return self.policy_settings.model

    def step_batch(self, transcripts: Sequence[Transcript], num_utterances: dict[str, int]) -> StepBatch:
        """Split this process's transcripts of an optimiser step into micro-batches, on the module's device.

        Args:
            num_utterances: of each level, over all processes.
        """
        batching = self.batching
        return step_batch(
            transcripts, num_utterances, micro_batch_tokens=batching.micro_batch_tokens, pad_id=0,
            packing=batching.packing,
        ).to(self.device)  # fmt: skip

    # --- the model ---------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load tokenizer and backbone, once."""
        if self.policy is not None:
            return
        settings = self.policy_settings
        precision = str(self.trainer.precision) if self._trainer is not None else "32-true"
        if precision.startswith("16"):
            raise ValueError(f"precision {precision!r} would need loss scaling: use bf16-mixed or 32-true")
        # under bf16-mixed a frozen backbone is kept in bf16 and its adapters in float32, as all that trains
        frozen = settings.lora is not None or is_adapter(settings.start_from)
        half = precision == "bf16-true" or (precision == "bf16-mixed" and frozen)
        self.chat = ChatFormat(load_tokenizer(settings.model))
        self.policy = load_backbone(
            settings.model,
            dtype=torch.bfloat16 if half else torch.float32,
            lora=settings.lora,
            adapter=settings.start_from if is_adapter(settings.start_from) else None,
            attention=settings.attention,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        self.chat.add_end_ids(model_end_ids(self.policy))
        if precision == "bf16-mixed" and frozen:
            leave_casting_to_autocast(self.policy)
        self.policy.train()  # as Lightning expects it; it switches to evaluation itself
        self._identity = policy_identity(self.policy, self.chat, settings.model)
        self.save_hyperparameters(effective(self, self._arguments))  # by now with what stands for None
        self._identity["adapter_from_folder"] = is_adapter(settings.start_from)
        if is_adapter(settings.start_from):
            check_adapter_folder(Path(settings.start_from or ""), self.policy, self._identity, settings)
        self.add_parts()
        if settings.start_from is not None and not is_adapter(settings.start_from):
            self._load_weights(Path(settings.start_from))
        if self.needs_reference and settings.start_from is not None:
            add_reference(self.policy)
        sharded = self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy)
        if sharded:
            self._shard(torch.bfloat16 if precision.startswith("bf16") else None)
        accelerate(
            self.policy,
            settings.accelerate,
            device=self.trainer.strategy.root_device if self._trainer is not None else None,
            dtype=torch.bfloat16 if precision.startswith("bf16") else None,
            sharded=sharded,
        )

    def _shard(self, half: torch.dtype | None) -> None:
        """Raises: ValueError for another strategy of this kind: what is split here is the list of layers, and
        checkpoints have to be checked."""
        if not isinstance(self.trainer.strategy, FSDP2Strategy):
            raise ValueError("use lit_rft.stages.FSDP2Strategy (fsdp.yaml) in place of ModelParallelStrategy")
        mesh: Any = self.device_mesh
        assert self.policy is not None
        shard(self.policy, mesh["data_parallel"], half=half)

    def zero_loss(self) -> Tensor:
        """A loss of 0 that reaches all weights of the policy."""
        assert self.policy is not None
        ids = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        hidden = final_hidden_states(self.policy, ids, ids)
        return 0.0 * (hidden.sum() + output_logits(self.policy, hidden).sum())

    def add_parts(self) -> None:
        """Make what a stage has besides the policy, before any weights are loaded."""

    def _load_weights(self, path: Path) -> None:
        if not path.is_file():
            found = "which holds no adapter" if path.exists() else "which is not there"
            raise ValueError(
                f"policy.start_from must be a PEFT adapter folder or a checkpoint file, got {path}, {found}: run the "
                "stage before this one first, or name its checkpoint (null: from scratch)"
            )
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"policy.start_from: {path} is no checkpoint of tensors and plain values") from error
        self._check_policy(checkpoint, str(path))
        self.check_source(checkpoint, str(path))
        trained = {name: value for name, value in checkpoint["state_dict"].items() if not is_reference(name)}
        weights = self.starting_weights(trained, str(path))
        policy = {k: v for k, v in weights.items() if k.startswith("policy.")}
        self._check_complete(policy, [n for n in self._saved_names() if n.startswith("policy.")], str(path))
        self.load_state_dict(policy, strict=False)
        self.load_parts(weights, str(path))

    def check_source(self, checkpoint: dict[str, Any], source: str) -> None:
        """Refuse a checkpoint whose weights would fit, but mean something else.

        Raises: ValueError saying why.
        """

    def starting_weights(self, weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
        """What a stage takes from the checkpoint it starts from.

        Raises: ValueError if it is no start for this stage.
        """
        if any(".low." in name for name in weights):
            raise ValueError(
                f"{source} is of an online stage and holds two adapters, its low level's apart: only another online "
                "stage can start from it (the high level's adapter alone is in that run's adapter folder)"
            )
        return weights

    def load_parts(self, weights: dict[str, Tensor], source: str) -> None:
        """Take what a stage has besides the policy from the checkpoint it starts from, where that has it."""

    # --- epochs of validation, test and predict ----------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """Forget the epoch before."""

    def end_epoch(self, prefix: str) -> None:
        """Report the scores under a prefix; an empty one, of `predict`, reports none."""

    def on_validation_epoch_start(self) -> None:
        self.begin_epoch()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self.end_epoch("val")

    def on_test_epoch_end(self) -> None:
        self.end_epoch("test")

    def on_predict_epoch_end(self) -> None:
        self.end_epoch("")

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _saved_names(self) -> list[str]:
        """Names of the weights that are not made again from the model's name."""
        return [name for name, p in self.named_parameters() if p.requires_grad or is_reference(name)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains, and what it belongs to; the frozen backbone is made again from its name."""
        saved = set(self._saved_names())
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in saved}
        checkpoint["stage"] = type(self).__name__
        checkpoint[_POLICY_RECORD] = self._identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this stage and policy, and say which settings have changed since."""
        super().on_load_checkpoint(checkpoint)
        self._check_resumable(checkpoint, "the checkpoint")
        weights = checkpoint.get("state_dict")
        if weights is not None:  # else they are split over devices, checked and loaded by now
            self._check_complete(weights, self._saved_names(), "the checkpoint")
            self._restore_reference(weights)
        self._checkpoint_step = int(checkpoint.get("global_step", 0))
        if self._trainer is not None and self.trainer.state.fn == "fit" and self.global_rank == 0:
            self._report_changes(checkpoint["hyper_parameters"])

    def _restore_reference(self, weights: Mapping[str, Tensor]) -> None:
        """Make room for the reference of the checkpoint, where this stage was not started from it."""
        assert self.policy is not None
        saved = any(is_reference(name) for name in weights)
        present = any(is_reference(name) for name, _ in self.policy.named_parameters())
        if saved and self.needs_reference and not present:
            add_reference(self.policy)

    def check_file(self, path: Path) -> None:
        """Look at a checkpoint before it is loaded.

        Raises: ValueError if it is no file, or its weights are not those that train here.
        """
        if not path.is_file():
            raise ValueError(f"expected a checkpoint in one file, got {path}")
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        self._check_resumable(checkpoint, "the checkpoint")
        self._check_complete(checkpoint["state_dict"], self._saved_names(), "the checkpoint")

    def _check_resumable(self, checkpoint: Mapping[str, Any], source: str) -> None:
        """Raises: ValueError if the checkpoint is of another stage, another policy or other settings that are fixed."""
        stage, own = checkpoint.get("stage"), type(self).__name__
        if stage is not None and stage != own:
            raise ValueError(
                f"{source} was written by the stage {stage}, and this is {own}: use the config of {stage}, or start "
                f"{own} from its weights with policy.start_from"
            )
        self._check_policy(checkpoint, source)
        self.check_source(dict(checkpoint), source)
        changed = differences(checkpoint["hyper_parameters"], self.hparams)
        fixed = {key: values for key, values in changed.items() if key.startswith(_FIXED) and key not in _FREE}
        if fixed:
            raise ValueError(
                f"{source} is of other settings, which a run cannot change: {_listed(fixed)}; set them back, or start "
                "a new run"
            )

    def _check_policy(self, checkpoint: Mapping[str, Any], source: str) -> None:
        """Raises: ValueError if the weights are of another base model, adapter or chat format."""
        if not isinstance(checkpoint, Mapping) or not {_POLICY_RECORD, "hyper_parameters"} <= checkpoint.keys():
            raise ValueError(f"{source} does not say what policy it is of: expected one written by a stage of lit-rft")
        found = identity_differences(checkpoint[_POLICY_RECORD], self._identity)
        if found:
            raise ValueError(
                f"{source} does not fit the model: {'; '.join(found)} (in the checkpoint -> here); use the policy "
                "settings that it was made with, or start a new run"
            )

    def _report_changes(self, saved: Mapping[str, Any]) -> None:
        changed = differences(saved, self.hparams)
        changed.pop("policy.start_from", None)  # the checkpoint's weights take its place
        if changed:
            logger.info("settings changed since the checkpoint, in effect from here on: %s", _listed(changed))

    def save_record(self, folder: Path) -> None:
        """Write what policy it is into a folder that its adapter is exported to; `policy.start_from` compares it."""
        write_json(folder / RECORD, self._identity)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = None, **arguments: Any
    ) -> "Self":
        """Make the stage that a checkpoint is of, with its weights.

        Args:
            checkpoint_path: the file.
            map_location: the device for the stage; default: the CPU.
            arguments: of the constructor, in place of the checkpoint's.
        Raises: ValueError if the checkpoint is of another stage, or its base model is not the one it was made with.
        """
        checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        wanted = checkpoint.get("stage")
        if wanted is not None and wanted != cls.__name__:
            raise ValueError(f"{checkpoint_path} was written by the stage {wanted}: use {wanted}.load_from_checkpoint")
        saved = rebuild_arguments(cls, checkpoint["hyper_parameters"])
        saved["policy"] = without_start(saved["policy"], checkpoint[_POLICY_RECORD])
        stage = cls(**{**saved, **arguments})
        stage.configure_model()
        stage.on_load_checkpoint(checkpoint)
        stage.load_state_dict(checkpoint["state_dict"], strict=False)
        return stage if map_location is None else stage.to(map_location)

    def _check_complete(self, weights: dict[str, Tensor], expected: list[str], source: str) -> None:
        # the reference may come and go with kl_coef; without one in the checkpoint that of policy.start_from stays
        names, needed = ({name for name in group if not is_reference(name)} for group in (weights, expected))
        missing, extra = sorted(needed - names), sorted(names - needed)
        if missing or extra:
            raise ValueError(
                f"{source} does not fit the model: {len(missing)} trained weights are missing (first: {missing[:1]}), "
                f"{len(extra)} are unknown (first: {extra[:1]}); use the model and LoRA settings it was made with"
            )


def _listed(changes: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {values}" for key, values in changes.items())
