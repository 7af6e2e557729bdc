"""Training with a real vLLM: samples follow the adapter from step to step, for prompts and for games, and in two
processes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_stage import make_grpo
from process_pair import ProcessPair
from with_vllm_figures import record

from lit_rft.agents import FlatAgent
from lit_rft.batches import Prompt
from lit_rft.datamodules import EpisodeGroupDataModule, PromptLoader
from lit_rft.envs import GymSuite
from lit_rft.generation import CompletionBackend, SamplingSettings, ServedAdapter, ServerSettings
from lit_rft.models import load_tokenizer
from lit_rft.problems import Problem
from lit_rft.rollouts import MixedPolicyLoss
from lit_rft.stages import (
    ActingSettings,
    AnsweringSettings,
    MixedPolicyEpisodes,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.testing.tiny_stage import ADAPTERS, fit
from lit_rft.transcripts import PromptFormat

OPTIMIZER = OptimizerSettings(learning_rate=3e-3)


class Compared:
    """A running backend whose samples are recomputed by the policy, with its adapter and without; also its settings.

    Args:
        backend: samples.
        name: of the figures.
    """

    def __init__(self, backend: CompletionBackend, name: str) -> None:
        self.backend, self.name, self.policy = backend, name, None
        self.with_adapter: list[torch.Tensor] = []
        self.without: list[torch.Tensor] = []
        self.adapters: list[str] = []
        self.loaded: list[ServedAdapter] = []

    def connect(self) -> CompletionBackend:
        return self

    def load(self, write: Any) -> ServedAdapter:
        self.loaded.append(self.backend.load(write))
        return self.loaded[-1]

    def unload(self, adapter: ServedAdapter) -> None:
        self.loaded.remove(adapter)
        self.backend.unload(adapter)

    def close(self) -> None:
        """Leave the backend to other tests: without this one's weights, as there may be room for one policy alone."""
        for adapter in list(self.loaded):
            self.unload(adapter)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    @torch.no_grad()
    def sample_groups(
        self, adapter: Any, prompts: Sequence[Any], sizes: Any, sampling: Any, ends: Any, **options: Any
    ) -> Any:
        groups = self.backend.sample_groups(adapter, prompts, sizes, sampling, ends, **options)
        if adapter.name not in self.adapters:
            self.adapters.append(adapter.name)
        policy: Any = self.policy
        if len(prompts[0][1]) == 24 and not prompts[0][0]:  # the check of the model
            return groups
        for (_, prompt), group in zip(prompts, groups, strict=True):
            for completion in group[:2]:
                with policy.disable_adapter():
                    self.without.append(self._difference(policy, prompt, completion))
                self.with_adapter.append(self._difference(policy, prompt, completion))
        return groups

    def _difference(self, policy: Any, prompt: Any, completion: Any) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *completion.ids]])
        logits = policy(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
        return expected - torch.tensor(completion.log_probs)


@pytest.fixture(params=["server", "in_process", "merged_in_process"])
def compared(request: pytest.FixtureRequest) -> Iterator[Compared]:
    if request.param == "server":
        backend = ServerSettings(request.getfixturevalue("server_url")).connect()
    else:
        backend = request.getfixturevalue(request.param)
    yield (compared := Compared(backend, request.node.name))
    compared.close()


def check(compared: Compared, num_adapters: int) -> None:
    """Later samples have the probabilities of the trained policy, not of the initial one (without adapters)."""
    half = len(compared.with_adapter) // 2
    differences, initial = torch.cat(compared.with_adapter), torch.cat(compared.without[half:])
    record(
        compared.name, tokens=len(differences), mean=differences.abs().mean().item(),
        initial=initial.abs().mean().item(), weight=differences.exp().mean().item(),
    )  # fmt: skip
    assert len(compared.adapters) == num_adapters
    assert differences.abs().mean() < 0.1 and 0.9 < differences.exp().mean() < 1.1
    assert torch.cat(compared.with_adapter[half:]).abs().mean() < initial.abs().mean() / 2


def even_length(completions: Any, rows: Any) -> list[float]:
    return [float(len(text) % 2) for text in completions]


def test_completions_follow_the_adapter(compared: Compared, model_folder: str) -> None:
    form = PromptFormat(load_tokenizer(model_folder))
    problems = [Problem(f"p{n}", ({"role": "user", "content": f"What is {n} + 5?"},), "1") for n in range(2)]
    stage = make_grpo(
        Path(model_folder), answering=AnsweringSettings(server=compared), sampling=SamplingSettings(12, 1.0),
        optimizer=OPTIMIZER, reward=even_length, objective={"traces_per_group": 0, "importance_cap": 2.0},
    )  # fmt: skip
    stage.configure_model()
    compared.policy = stage.policy
    fit(stage, PromptLoader([Prompt(p, form.prompt_ids(p.prompt), [], [], []) for p in problems], batch_size=2), 3)
    check(compared, 3)


def test_episodes_follow_the_adapter(compared: Compared, model_folder: str, tmp_path: Path) -> None:
    stage = MixedPolicyEpisodes(
        PolicySettings(model=model_folder, lora=ADAPTERS), OPTIMIZER,
        ObjectiveSettings(group_size=3, traces_per_group=0, entropy_coef=0.1), SamplingSettings(6, 1.0),
        ActingSettings(SamplingSettings(6), parallel_episodes=6, server=compared), FlatAgent("Act.", 400),
        loss=MixedPolicyLoss(importance_cap=2.0),
    )  # fmt: skip
    stage.configure_model()
    compared.policy = stage.policy
    suite = GymSuite("lit_rft.envs.games.GuessNumber", step_limit=2, seeds={"train": 4, "dev": 2, "test": 2})
    data = EpisodeGroupDataModule(
        model=model_folder, suite=suite, data_dir=str(tmp_path), train_episodes_per_task=4, batch_size=2
    )
    fit(stage, data, 2)
    check(compared, 2)


def test_two_processes_train_by_one_server(
    server_url: str, pair: ProcessPair, tmp_path: Path, model_folder: str
) -> None:
    """Both sample with the adapter that the first one has loaded, and end with the same weights."""
    arguments = ["prompts", model_folder, str(tmp_path), "2", "2", "ddp", "--url", server_url]
    pair.run("mixed_policy_in_processes", [*arguments, "--targets", "q_proj"])
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert any(weight.abs().max() > 1e-3 for name, weight in first.items() if "lora_B" in name)
    assert all(torch.equal(first[name], second[name]) for name in first if "lora_" in name)
