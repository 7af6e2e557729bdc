"""A stage whose completions come from a generation server: by the policy as it is, and corrected for the mismatch."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from fake_vllm import FakeVllm, folders, serving
from grpo_stage import differ, make_grpo, make_prompts
from online_run import make_data, make_online
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_rft.datamodules import PromptLoader
from lit_rft.generation import SamplingSettings, ServerSettings, VllmServer
from lit_rft.generation.adapter_sync import AdapterSync
from lit_rft.models import LoraSettings
from lit_rft.models.lora import add_lora
from lit_rft.rollouts import MixedPolicyLoss
from lit_rft.stages import ActingSettings, AnsweringSettings, MixedPolicyGRPO
from lit_rft.testing.tiny import make_model
from lit_rft.testing.tiny_stage import fit, trained


@pytest.fixture
def fake(tiny_model_folder: Path) -> FakeVllm:
    return FakeVllm(AutoModelForCausalLM.from_pretrained(tiny_model_folder))


@pytest.fixture
def given(fake: FakeVllm) -> list[dict[str, torch.Tensor]]:
    """The weights of all adapters that the server was given."""
    found: list[dict[str, torch.Tensor]] = []
    load = fake.load_adapter

    def remember(name: str, folder: str) -> Any:
        sent = [file for file in Path(folder).rglob("*") if file.is_file()]
        assert {file.suffix for file in sent} <= {".json", ".md", ".safetensors"}
        (weights,) = (file for file in sent if file.suffix == ".safetensors")
        assert all("lora_" in tensor for tensor in load_file(weights))  # the adapter travels, and nothing else
        answer = load(name, folder)
        found.append({n: p.clone() for n, p in fake.adapters[name].named_parameters() if "lora_" in n})
        return answer

    fake.load_adapter = remember  # type: ignore[method-assign]
    return found


class Remember(L.Callback):
    """The policy's adapter before each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Any, stage: Any, *_: Any) -> None:
        self.weights.append(adapter_of(stage))


def adapter_of(stage: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in stage.policy.named_parameters() if "lora_" in n}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run(fake: FakeVllm, model: Path, steps: int = 3, callbacks: Any = (), **options: Any) -> Any:
    with serving(fake) as url:
        stage = make_grpo(model, answering=AnsweringSettings(server=ServerSettings(url, timeout=60)), **options)
        fit(stage, PromptLoader(make_prompts(model), batch_size=2), steps, callbacks=list(callbacks))
    return stage


def test_every_rollout_is_by_the_policy_as_it_is(
    fake: FakeVllm, given: list[dict[str, torch.Tensor]], tiny_model_folder: Path
) -> None:
    policy = Remember()
    stage = run(fake, tiny_model_folder, callbacks=[policy])
    assert len(given) == 3 and all(map(equal, given, policy.weights))
    assert not equal(given[1], given[2])
    assert not fake.adapters and not any(folder.exists() for folder in folders(fake))  # nothing is left behind
    for one in stage.samples:
        assert sum(map(len, one.sampled_log_probs)) == (0 if one.off_policy else one.length)


def test_answers_are_by_weights_that_were_loaded_since(
    fake: FakeVllm, given: list[dict[str, torch.Tensor]], tiny_model_folder: Path
) -> None:
    loader = PromptLoader(make_prompts(tiny_model_folder), batch_size=2)
    with serving(fake) as url:
        sampling = SamplingSettings(8, 1.0)
        settings = AnsweringSettings(sampling, num_samples=2, server=ServerSettings(url, timeout=60))
        stage = make_grpo(tiny_model_folder, answering=settings)
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.test(stage, loader)
        with torch.no_grad():
            for name, parameter in stage.policy.named_parameters():
                if "lora_B" in name:
                    parameter += 1
        trainer.test(stage, loader)
    assert len(given) == 2 and equal(given[1], adapter_of(stage)) and not equal(given[0], given[1])
    assert len(stage.evaluator.results) == 8


def test_weights_correct_for_another_engine(fake: FakeVllm, tiny_model_folder: Path) -> None:
    """Of an engine that is off by a factor, each token has another weight; of an exact one, none."""

    def after(cap: float | None, *wrong: float) -> dict[str, torch.Tensor]:
        """Trained with log-probabilities that are off by these, in turns."""

        def change(answer: Any) -> Any:
            for choice in answer["choices"]:
                said = choice["logprobs"]["token_logprobs"]
                choice["logprobs"]["token_logprobs"] = [p + wrong[i % len(wrong)] for i, p in enumerate(said)]
            return answer

        fake.change = change
        return trained(run(fake, tiny_model_folder, steps=1, objective={"importance_cap": cap, "entropy_coef": 0.0}))

    plain = after(None, -0.5, 0.5)
    assert differ(plain, after(2.0, -0.5, 0.5))
    assert not differ(plain, after(2.0, 0.0))
    assert differ(after(1.0, -0.5, 0.5), after(2.0, -0.5, 0.5))
    # pi / pi_server, not the other way: below 1 where the server is surer, above 1, and capped, where it is less sure
    assert not differ(after(1.0, 0.5, 0.2), after(2.0, 0.5, 0.2))
    assert not differ(plain, after(1.0, -0.5, -0.2))


def test_each_level_plays_with_its_own_adapter_and_sampling(
    fake: FakeVllm, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Greedy episodes by a server are those without one, of an online stage with an adapter for each level."""
    data = make_data(tiny_model_folder, tmp_path, tasks=["walk"], eval_split="test", eval_episodes_per_task=2)
    played: list[Any] = []
    with serving(fake) as url:
        for server in (None, ServerSettings(url, timeout=60)):
            by_level = {"low": SamplingSettings(3)}
            acting = ActingSettings(SamplingSettings(6), parallel_episodes=2, server=server, level_sampling=by_level)
            stage = make_online(tiny_model_folder, acting=acting)
            stage.configure_model()
            with torch.no_grad():
                for name, parameter in stage.policy.named_parameters():
                    if "lora_B" in name:
                        parameter += 0.3 if ".frozen." in name else -0.3
            options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            L.Trainer(accelerator="cpu", **options).test(stage, datamodule=data, verbose=False)
            played.append({one.episode.id: [t.input_ids for t in one.transcripts] for one in stage.evaluator.results})
    assert played[0] == played[1] and len(played[0]) == 2
    high, low = folders(fake)
    assert low.name == "frozen" and high.name != "frozen" and not fake.adapters and not high.exists()


def test_importance_weights_need_whole_probabilities() -> None:
    server = AnsweringSettings(server=ServerSettings())
    for sampling in (SamplingSettings(8, 1.0, top_k=5), SamplingSettings(8, 1.0, top_p=0.9)):
        MixedPolicyGRPO(sampling=sampling, answering=server)
        with pytest.raises(ValueError, match="needs the probabilities before top-k and top-p"):
            MixedPolicyGRPO(None, None, None, sampling, answering=server, loss=MixedPolicyLoss(importance_cap=2.0))


def test_all_weights_are_refused(fake: FakeVllm, tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="a server gets adapters, not whole models"):
        run(fake, tiny_model_folder, lora=None)


def test_the_plain_way_is_the_default() -> None:
    assert AnsweringSettings().server is None and MixedPolicyLoss().importance_cap is None


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"q_proj": 2}}], ids=str
)
def test_adapters_that_a_server_would_take_for_others_are_refused(settings: dict[str, Any]) -> None:
    policy = add_lora(make_model(), LoraSettings(4, 8, 0.0, **settings))
    with pytest.raises(ValueError, match=f"cannot sample with an adapter that has {next(iter(settings))}"):
        AdapterSync(VllmServer(ServerSettings("http://127.0.0.1:9"))).current(policy, 0)
