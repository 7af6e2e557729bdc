"""What all stages share: the policy, acting in environments, exact optimiser steps, small checkpoints."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_rft.agents import Agent, EpisodePlayer, FlatAgent, HierarchicalAgent, PlayedEpisode
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.envs.pool import EnvPool
from lit_rft.metrics import EpisodeMetrics
from lit_rft.models.backbone import load_backbone, load_tokenizer
from lit_rft.models.merging import MergedAdapters
from lit_rft.rollout import ConversationGenerator
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
        self._pool: EnvPool | None = None
        self._player: EpisodePlayer | None = None
        self._metrics: EpisodeMetrics | None = None
        self._merged: MergedAdapters | None = None

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
        self.policy.train()  # as Lightning expects it; it switches to evaluation itself
        if settings.start_from is not None and not _is_adapter(settings.start_from):
            self._load_weights(Path(settings.start_from))

    def _load_weights(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"start_from must be a PEFT adapter folder or a checkpoint file: got {path}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        weights = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("policy.")}
        self._check_complete(weights, [n for n in self._trained_names() if n.startswith("policy.")], str(path))
        self.load_state_dict(weights, strict=False)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _trained_names(self) -> list[str]:
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains; the frozen backbone is made again from its name."""
        trained = set(self._trained_names())
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_complete(checkpoint["state_dict"], self._trained_names(), "the checkpoint")

    def _check_complete(self, weights: dict[str, Tensor], expected: list[str], source: str) -> None:
        missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
        if missing or extra:
            raise ValueError(
                f"{source} does not fit the model: {len(missing)} trained weights are missing (first: {missing[:1]}), "
                f"{len(extra)} are unknown (first: {extra[:1]}); use the model and LoRA settings it was made with"
            )

    # --- optimisation ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        settings = self.optimizer_settings
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)}

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
        Raises: NonFiniteLossError before the weights change, with the micro-batch's episode ids.
        """
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        for make_loss in losses:
            loss, episode_ids = make_loss()
            if not torch.isfinite(loss):
                raise NonFiniteLossError(
                    f"the loss is {loss.item()} at step {self.global_step}, in a micro-batch of the episodes "
                    f"{', '.join(episode_ids)}; the last checkpoint is intact: lower the learning rate or look at them"
                )
            self.manual_backward(loss)
        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.trainer.world_size > 1:
            _sum_gradients(parameters)
        limit = self.optimizer_settings.max_grad_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        optimizer.step()  # type: ignore[union-attr]
        schedule.step()  # type: ignore[union-attr]
        self.log_dict({"train/grad_norm": norm, "train/learning_rate": schedule.get_last_lr()[0]})  # type: ignore[union-attr]

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

    def _play(self, jobs: EpisodeJobs, batch_index: int, num_batches: int) -> list[PlayedEpisode]:
        """Submit a batch's episodes and play until few enough are unfinished; after the last batch, until none is."""
        assert self.policy is not None and self.chat is not None
        settings = self.acting
        if self._player is None:
            agent = self.make_agent()
            self._pool = self._pool or EnvPool(
                jobs.make_env,
                settings.parallel_episodes,
                call_timeout=settings.call_timeout,
                reset_timeout=settings.reset_timeout,
            )
            slots = agent.conversations * settings.parallel_episodes
            generator = ConversationGenerator(
                self.policy, self.chat.end_of_turn_id, settings.sampling, num_slots=slots, seed=settings.seed
            )
            self._player = EpisodePlayer(agent, generator, self._pool, {"model": self.policy_settings.model})
            self._metrics = EpisodeMetrics(jobs.tasks).to(self.device)
            self._merged = MergedAdapters(self.policy) if settings.merge_adapters else None
        self._player.submit([job for job in jobs.jobs if job.id not in self.already_played])
        last = batch_index + 1 >= num_batches
        ended = list(self._player.run(0 if last else settings.parallel_episodes))
        for episode in ended:
            self._metrics.update(episode.episode)  # type: ignore[union-attr]
        self.played += ended
        return ended

    def validation_step(self, batch: EpisodeJobs, batch_idx: int) -> None:
        numbers = self.trainer.num_sanity_val_batches if self.trainer.sanity_checking else self.trainer.num_val_batches
        self._play(batch, batch_idx, int(numbers[0]))

    def test_step(self, batch: EpisodeJobs, batch_idx: int) -> None:
        self._play(batch, batch_idx, int(self.trainer.num_test_batches[0]))

    def predict_step(self, batch: EpisodeJobs, batch_idx: int) -> list[PlayedEpisode]:
        return self._play(batch, batch_idx, int(self.trainer.num_predict_batches[0]))

    def _stop_acting(self) -> None:
        """Free the caches and unfold the adapters."""
        self._player = None
        if self._merged is not None:
            self._merged.restore()
            self._merged = None

    def _begin_epoch(self) -> None:
        self._stop_acting()
        self.played, self.score_table = [], {}

    def _end_epoch(self, prefix: str) -> None:
        """Report the scores."""
        self._stop_acting()
        if self._metrics is None:
            return
        self.score_table, self._metrics = self._metrics.compute(), None
        if prefix:
            means = self.score_table.get("mean", {})
            names = {"success": "success_rate"}
            self.log_dict({f"{prefix}/{names.get(k, k)}": v for k, v in means.items()}, rank_zero_only=True)
            per_task = {f"{prefix}/score/{t}": row["score"] for t, row in self.score_table.items() if t != "mean"}
            self.log_dict(per_task, rank_zero_only=True)

    def teardown(self, stage: str) -> None:
        """End the simulators."""
        self._stop_acting()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

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
