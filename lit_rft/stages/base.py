"""What all stages share: the policy, acting in environments, exact optimiser steps, small checkpoints."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_rft.agents import Agent, FlatAgent, HierarchicalAgent, PlayedEpisode
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.models.backbone import leave_casting_to_autocast, load_backbone, load_tokenizer
from lit_rft.stages.episode_runner import ActingPolicy, EpisodeRunner
from lit_rft.stages.optimization import OptimizedModule
from lit_rft.stages.settings import ActingSettings, OptimizerSettings, PolicySettings
from lit_rft.transcripts import ChatFormat, HierarchyPrompts


class PolicyStage(OptimizedModule):
    """A language-model policy that acts in text environments, and how its weights are stepped and saved.

    Subclasses write `training_step`. `validate`, `test` and `predict` play episodes: their data loaders give
    `EpisodeJobs`, `played` holds the episodes of the epoch, and `predict_step` returns those that have ended.

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
        super().__init__(optimizer or OptimizerSettings())
        self.policy_settings = policy or PolicySettings()
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
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        self._check_hierarchy(checkpoint, str(path))
        weights = self.starting_weights(checkpoint["state_dict"], str(path))
        policy = {k: v for k, v in weights.items() if k.startswith("policy.")}
        self._check_complete(policy, [n for n in self._saved_names() if n.startswith("policy.")], str(path))
        self.load_state_dict(policy, strict=False)
        self.load_parts(weights, str(path))

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

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _saved_names(self) -> list[str]:
        """Names of the weights that are not made again from the model's name."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains; the frozen backbone is made again from its name."""
        saved = set(self._saved_names())
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in saved}
        checkpoint["hierarchy"] = self.hierarchy

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_hierarchy(checkpoint, "the checkpoint")
        self._check_complete(checkpoint["state_dict"], self._saved_names(), "the checkpoint")
        self._checkpoint_step = int(checkpoint.get("global_step", 0))

    def _check_hierarchy(self, checkpoint: dict[str, Any], source: str) -> None:
        """The weights would fit, and play nonsense."""
        if checkpoint.get("hierarchy", self.hierarchy) != self.hierarchy:
            kinds = {True: "a hierarchical", False: "a flat"}
            raise ValueError(
                f"{source} is of {kinds[not self.hierarchy]} policy, and this is {kinds[self.hierarchy]} one: start "
                "from another checkpoint, or set hierarchy accordingly"
            )

    def _check_complete(self, weights: dict[str, Tensor], expected: list[str], source: str) -> None:
        missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
        if missing or extra:
            raise ValueError(
                f"{source} does not fit the model: {len(missing)} trained weights are missing (first: {missing[:1]}), "
                f"{len(extra)} are unknown (first: {extra[:1]}); use the model and LoRA settings it was made with"
            )

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
        ended = self._runner.play(EpisodeJobs(wanted, jobs.make_env, jobs.tasks), num_batches - 1 - batch_index)
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
