"""What all stages share: the policy, acting in environments, exact optimiser steps, small checkpoints."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from lit_rft.agents import Agent, FlatAgent, HierarchicalAgent, PlayedEpisode
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.models.backbone import leave_casting_to_autocast, load_backbone, load_tokenizer
from lit_rft.stages.episode_runner import ActingPolicy, EpisodeRunner
from lit_rft.stages.schedule import learning_rate_factor
from lit_rft.stages.settings import ActingSettings, OptimizerSettings, PolicySettings
from lit_rft.transcripts import ChatFormat, HierarchyPrompts


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite; the weights are still those of the last good step."""


class PolicyStage(L.LightningModule):
    """A language-model policy that acts in text environments, and how its weights are stepped and saved.

    Subclasses write `training_step`. `validate`, `test` and `predict` play episodes: their data loaders give
    `EpisodeJobs`, `played` holds the episodes of the epoch, and `predict_step` returns those that have ended.

    Optimisation is manual, so that one optimiser step is exactly one data-loader batch, however many micro-batches it
    is split into and however many processes share it: see `accumulate_and_step`.

    Args:
        policy: which model, and from where it starts.
        optimizer: AdamW and its schedule.
        acting: how episodes are played.
        hierarchy: two levels, or (False) a flat agent without subgoals.
        prompts: what each level is told.
    """

    strict_loading = False  # checkpoints hold what trains; `on_load_checkpoint` checks that it is all there

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        acting: ActingSettings | None = None,
        hierarchy: bool = True,
        prompts: HierarchyPrompts | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy_settings = policy or PolicySettings()
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.acting = acting or ActingSettings()
        self.hierarchy = hierarchy
        self.prompts = prompts or HierarchyPrompts()
        self.policy: nn.Module | None = None
        self.chat: ChatFormat | None = None
        self.played: list[PlayedEpisode] = []
        self.already_played: set[str] = set()  # ids of episodes that `predict` need not play again
        self.score_table: dict[str, dict[str, float]] = {}
        self._runner = EpisodeRunner(self.acting)
        self._checkpoint_step = 0  # of the checkpoint that was loaded

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
        frozen = settings.lora is not None or _is_adapter(settings.start_from)
        half = precision == "bf16-true" or (precision == "bf16-mixed" and frozen)
        self.chat = ChatFormat(load_tokenizer(settings.model))
        self.policy = load_backbone(
            settings.model,
            dtype=torch.bfloat16 if half else torch.float32,
            lora=settings.lora,
            adapter=settings.start_from if _is_adapter(settings.start_from) else None,
            attention=settings.attention,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        if precision == "bf16-mixed" and frozen:
            leave_casting_to_autocast(self.policy)
        self.policy.train()  # as Lightning expects it; it switches to evaluation itself
        self.add_parts()
        if settings.start_from is not None and not _is_adapter(settings.start_from):
            self._load_weights(Path(settings.start_from))

    def add_parts(self) -> None:
        """Make what a stage has besides the policy, before any weights are loaded."""

    def _load_weights(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"start_from must be a PEFT adapter folder or a checkpoint file: got {path}")
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        policy = {k: v for k, v in weights.items() if k.startswith("policy.")}
        self._check_complete(policy, [n for n in self._saved_names() if n.startswith("policy.")], str(path))
        self.load_state_dict(policy, strict=False)
        self.load_parts(weights, str(path))

    def load_parts(self, weights: dict[str, Tensor], source: str) -> None:
        """Take what a stage has besides the policy from the checkpoint it starts from, where that has it."""

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _saved_names(self) -> list[str]:
        """Names of the weights that are not made again from the model's name."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains; the frozen backbone is made again from its name."""
        saved = set(self._saved_names())
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in saved}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_complete(checkpoint["state_dict"], self._saved_names(), "the checkpoint")
        self._checkpoint_step = int(checkpoint.get("global_step", 0))

    def _check_complete(self, weights: dict[str, Tensor], expected: list[str], source: str) -> None:
        missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
        if missing or extra:
            raise ValueError(
                f"{source} does not fit the model: {len(missing)} trained weights are missing (first: {missing[:1]}), "
                f"{len(extra)} are unknown (first: {extra[:1]}); use the model and LoRA settings it was made with"
            )

    # --- optimisation ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameter_groups(), weight_decay=self.optimizer_settings.weight_decay)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What trains, each part with its learning rate; gradients are clipped part by part."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [{"params": parameters, "lr": self.optimizer_settings.learning_rate, "name": "policy"}]

    def _lr_factor(self, step: int) -> float:
        settings = self.optimizer_settings
        # Only a running trainer is asked for its steps: asked earlier, it would set up the training data too soon to
        # restore their position from a checkpoint.
        total = float("inf")
        if settings.schedule != "constant" and step > settings.warmup_steps:
            total = self.trainer.estimated_stepping_batches
        return learning_rate_factor(step, settings.schedule, settings.warmup_steps, total)

    def accumulate_and_step(self, losses: Iterable[Callable[[], tuple[Tensor, list[str]]]]) -> None:
        """One optimiser step on the sum of the losses of all micro-batches of all processes.

        Gradients are summed, not averaged, over processes: each loss must be divided by counts over all of them. A
        process may have fewer micro-batches than another, or none.

        Args:
            losses: functions that return one micro-batch's loss and the ids of its episodes.
        Raises: NonFiniteLossError in every process, before the weights change, if a loss or a gradient of any of them
            is not finite.
        """
        optimizer, schedule = cast(Any, self.optimizers()), cast(Any, self.lr_schedulers())
        optimizer.zero_grad()
        bad_ids: list[str] = []
        # Processes reduce their gradients once, below: reducing in each backward pass would wait for a micro-batch that
        # another process does not have.
        with getattr(self.trainer.strategy, "block_backward_sync", contextlib.nullcontext)():
            for make_loss in losses:
                loss, episode_ids = make_loss()
                if not torch.isfinite(loss):
                    bad_ids = episode_ids
                    break
                self.manual_backward(loss)
        groups = {group["name"]: group["params"] for group in optimizer.param_groups}
        if self.trainer.world_size > 1:
            _sum_gradients([parameter for parameters in groups.values() for parameter in parameters])
        limit = self.optimizer_settings.max_grad_norm or float("inf")
        norms = {name: nn.utils.clip_grad_norm_(parameters, limit) for name, parameters in groups.items()}
        self._check_finite(bad_ids, torch.stack(list(norms.values())))
        optimizer.step()
        schedule.step()
        rates = dict(zip(norms, schedule.get_last_lr(), strict=True))
        for name, norm in norms.items():
            prefix = "train" if name == "policy" else f"train/{name}"
            self.log_dict({f"{prefix}/grad_norm": norm, f"{prefix}/learning_rate": rates[name]})

    def _check_finite(self, bad_ids: list[str], norms: Tensor) -> None:
        """All processes stop together, or none."""
        failed = (~torch.isfinite(norms)).any().float() + float(bool(bad_ids))
        if self.sum_over_processes({"failed": failed})["failed"] > 0:
            where = f"in a micro-batch of the episodes {', '.join(bad_ids)}" if bad_ids else "in a gradient"
            raise NonFiniteLossError(
                f"a loss or gradient is not finite at step {self.global_step}, {where}; the weights and the last "
                "checkpoint are those of the step before: look at these episodes, or lower the learning rate"
            )

    def sum_over_processes(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add up each value over all processes, in one message; every process must bring the same names."""
        if self.trainer.world_size == 1 or not values:
            return values
        total = torch.stack([value.float() for value in values.values()])
        torch.distributed.all_reduce(total)
        return dict(zip(values, total.unbind(), strict=True))

    # --- acting ------------------------------------------------------------------------------------------------------

    def make_agent(self) -> Agent:
        assert self.chat is not None
        settings = self.acting
        if self.hierarchy:
            return HierarchicalAgent(self.chat, self.prompts, settings.max_length, settings.subgoal_steps)
        return FlatAgent(self.chat, self.prompts, settings.max_length)

    def acting_policy(self) -> ActingPolicy:
        """Who plays in evaluation."""
        assert self.policy is not None and self.chat is not None
        sampling, seed = self.acting.sampling, self.acting.seed
        agent, source = self.make_agent(), self.source()
        return ActingPolicy(self.policy, agent, self.chat.end_of_turn_id, source, sampling, seed)

    def source(self) -> dict[str, Any]:
        """Who plays, for the episodes' records: what makes two runs of `predict` differ."""
        acting = self.acting
        return {
            "kind": "policy",
            "model": self.policy_settings.model,
            "start_from": self.policy_settings.start_from,
            "checkpoint_step": self._checkpoint_step,
            "hierarchy": self.hierarchy,
            "sampling": dataclasses.asdict(acting.sampling),
            "seed": acting.seed,
        }

    def _play(self, jobs: EpisodeJobs, batch_index: int, num_batches: int) -> list[PlayedEpisode]:
        """Play until one more episode has ended: all of them are submitted with the first batch."""
        if not self._runner.playing:
            self._runner.begin(self.acting_policy(), jobs)
        wanted = [job for job in jobs.jobs[:num_batches] if job.id not in self.already_played]
        ended = self._runner.play(dataclasses.replace(jobs, jobs=wanted), num_batches - 1 - batch_index)
        self.played += ended
        return ended

    def validation_step(self, batch: EpisodeJobs, batch_idx: int) -> None:
        numbers = self.trainer.num_sanity_val_batches if self.trainer.sanity_checking else self.trainer.num_val_batches
        self._play(batch, batch_idx, int(numbers[0]))

    def test_step(self, batch: EpisodeJobs, batch_idx: int) -> None:
        self._play(batch, batch_idx, int(self.trainer.num_test_batches[0]))

    def predict_step(self, batch: EpisodeJobs, batch_idx: int) -> list[PlayedEpisode]:
        return self._play(batch, batch_idx, int(self.trainer.num_predict_batches[0]))

    def _begin_epoch(self) -> None:
        self.played, self.score_table = [], {}

    def _end_epoch(self, prefix: str) -> None:
        """Report the scores."""
        self.already_played = set()
        if not self._runner.playing:
            return
        self.score_table = self._runner.end()
        if prefix:
            means = self.score_table.get("mean", {})
            names = {"success": "success_rate"}
            self.log_dict({f"{prefix}/{names.get(k, k)}": v for k, v in means.items()}, rank_zero_only=True)
            per_task = {f"{prefix}/score/{t}": row["score"] for t, row in self.score_table.items() if t != "mean"}
            self.log_dict(per_task, rank_zero_only=True)

    def teardown(self, stage: str) -> None:
        """End the simulators."""
        self._runner.close()

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = _begin_epoch

    def on_validation_epoch_end(self) -> None:
        self._end_epoch("val")

    def on_test_epoch_end(self) -> None:
        self._end_epoch("test")

    def on_predict_epoch_end(self) -> None:
        self._end_epoch("")


def _is_adapter(path: str | None) -> bool:
    return path is not None and Path(path).is_dir()


def _sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum gradients over all processes, in one message; a process without one for a weight adds zeros."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
