"""`seed_everything` changes all that is random in training, and leaves the evaluation sets alone."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_rft._seeds import derive_seed, resolve_seed
from lit_rft.cli import resolve_configs
from lit_rft.command_line import build
from lit_rft.datamodules import EpisodeGroupDataModule, MathPromptDataModule, OnlineDataModule, TrajectoryDataModule
from lit_rft.envs import EpisodeSpec, ScienceWorldSuite
from lit_rft.envs.scienceworld import short_tasks
from lit_rft.envs.scienceworld.suite import SHORT_TASKS
from lit_rft.sources import ExGRPO, TracePrefixes
from lit_rft.stages import (
    ActingSettings,
    AnsweringSettings,
    HierarchicalSFT,
    MixedPolicyEpisodes,
    MixedPolicyGRPO,
    OnlineHighLevelFinetune,
    OnlineSettings,
    PolicySettings,
)
from lit_rft.testing.tiny_stage import trained

KEYS = {
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
    "trainer.max_steps": "1",
    "trainer.limit_val_batches": "0",
    "trainer.callbacks": "[]",
    "trainer.logger": "false",
    "trainer.enable_checkpointing": "false",
    "trainer.enable_progress_bar": "false",
    "model.init_args.policy.lora.target_modules": "all-linear",
    "model.init_args.objective.group_size": "2",
    "model.init_args.sampling.max_new_tokens": "4",
    "model.init_args.reward": "test_seeds.length",
    "data.init_args.train_tasks": "{chain_sum: 4}",
    "data.init_args.eval_tasks": "{chain_sum: 4}",
    "data.init_args.batch_size": "2",
    "data.init_args.max_trace_length": "64",
}


def length(completions: Any, rows: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def train(model: Path, folder: Path, *more: str) -> dict[str, Any]:
    """What is random in one training step through the command line."""
    keys = {**KEYS, "model.init_args.policy.model": str(model), "trainer.default_root_dir": str(folder)}
    flat = [part for key, value in keys.items() for part in (f"--{key}", value)]
    cli = build(resolve_configs(["-c", "luffy/arithmetic.yaml", *flat, *more]), run=False)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    prompts = {name: [p.problem.prompt for p in cli.datamodule.prompts[name]] for name in cli.datamodule.prompts}
    return {
        "problems": prompts["train"],
        "evaluation": prompts["eval"],
        "rollout": [member.text for member in cli.model.samples if not member.off_policy],
        "answering": cli.model.answering.seed,
        "weights": torch.cat([value.flatten() for value in trained(cli.model).values()]).tolist(),
    }


def test_seed_everything_changes_the_run_and_not_the_evaluation_set(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    zero, three, again = (train(tiny_model_folder, tmp_path, "--seed_everything", seed) for seed in "033")
    assert three == again
    assert zero["evaluation"] == three["evaluation"]
    assert [name for name in zero if zero[name] == three[name]] == ["evaluation"]
    explicit = ["--data.init_args.seed", "0", "--model.init_args.answering.seed", "7"]
    mixed = train(tiny_model_folder, tmp_path, "--seed_everything", "3", *explicit)
    assert mixed["problems"] == zero["problems"] and mixed["answering"] == 7


def test_every_seed_of_every_part_follows_the_run() -> None:
    def seeds() -> list[int | None]:
        grpo, online = MixedPolicyGRPO(), OnlineHighLevelFinetune()
        stages = [grpo.seed, grpo.answering.seed, online.online.seed, online.acting.seed, HierarchicalSFT().acting.seed]
        stages += [MixedPolicyGRPO(source=source).source.seed for source in (ExGRPO(), TracePrefixes())]
        modules = (MathPromptDataModule, TrajectoryDataModule, OnlineDataModule, EpisodeGroupDataModule)
        return [*stages, MixedPolicyEpisodes().seed, *(module().seed for module in modules)]

    for seed in (5, 6):
        L.seed_everything(seed, verbose=False)
        assert seeds() == [seed] * 12
    L.seed_everything(0, verbose=False)


def test_an_explicit_seed_wins_in_every_part() -> None:
    L.seed_everything(5, verbose=False)
    assert MixedPolicyGRPO(seed=1).seed == MixedPolicyEpisodes(seed=1).seed == 1
    assert MixedPolicyGRPO(answering=AnsweringSettings(seed=1)).answering.seed == 1
    assert HierarchicalSFT(acting=ActingSettings(seed=0)).acting.seed == 0  # 0 is a seed, not an absent one
    assert OnlineHighLevelFinetune(OnlineSettings(seed=1)).online.seed == 1
    for source in (ExGRPO(seed=1), TracePrefixes(seed=1)):
        assert MixedPolicyGRPO(source=source).source.seed == 1
    assert MathPromptDataModule(seed=0).seed == TrajectoryDataModule(seed=0).seed == 0
    L.seed_everything(0, verbose=False)


def test_checkpoints_know_the_seeds_of_the_run(tiny_model_folder: Path) -> None:
    L.seed_everything(5, verbose=False)
    policy = PolicySettings(str(tiny_model_folder))
    stages: list[Any] = [
        MixedPolicyGRPO(policy, answering=AnsweringSettings()),
        MixedPolicyGRPO(policy, answering=AnsweringSettings(seed=1), seed=2),
        OnlineHighLevelFinetune(OnlineSettings(), policy=policy),
        MixedPolicyGRPO(policy, source=ExGRPO()),
    ]
    for stage in stages:
        stage.configure_model()
    L.seed_everything(0, verbose=False)
    first, second, online, replay = (stage.hparams for stage in stages)
    assert (first["seed"], first["answering"]["seed"]) == (5, 5)
    assert (second["seed"], second["answering"]["seed"]) == (2, 1)
    assert online["online"]["seed"] == 5
    assert replay["source"]["init_args"]["seed"] == 5


def test_without_a_seed_of_the_run_it_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert resolve_seed(None) == 0 and resolve_seed(4) == 4


def test_derived_seeds_of_neighbours_share_no_steps() -> None:
    streams = [{derive_seed(seed, "exploration", step) for step in range(50)} for seed in range(4)]
    assert len(set.union(*streams)) == 200


def test_training_problems_are_never_the_evaluation_ones() -> None:
    with pytest.raises(ValueError, match="seed 1000003 would generate the evaluation problems"):
        MathPromptDataModule(seed=1_000_003)


def test_evaluation_variations_are_those_of_eval_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Simulator:
        def tasks(self) -> list[str]:
            return list(SHORT_TASKS)

        def variations(self, task: str, split: str) -> list[int]:
            return list(range(100))

        def close(self) -> None:
            pass

    monkeypatch.setattr(ScienceWorldSuite, "make_env", lambda self: Simulator())

    def jobs(seed: int, eval_seed: int, verb: str) -> list[EpisodeSpec]:
        limits = {"eval_episodes_per_task": 3, "predict_episodes_per_task": 3}
        data = TrajectoryDataModule(suite=short_tasks(), seed=seed, eval_seed=eval_seed, **limits)
        data.setup(verb)
        loader: Any = data.test_dataloader() if verb == "test" else data.predict_dataloader()
        return list(loader.jobs)

    assert jobs(0, 0, "test") == jobs(1, 0, "test") != jobs(0, 1, "test")
    assert jobs(0, 0, "predict") == jobs(0, 1, "predict") != jobs(1, 0, "predict")  # of the next stage's training
