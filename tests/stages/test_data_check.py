"""A stage refuses data that are not of its kind, agent or tokenizer before it has learnt from them."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grpo_stage import make_grpo, make_prompts
from online_run import make_data, make_online
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from lit_rft.agents import HierarchyPrompts
from lit_rft.batches import PromptBatch
from lit_rft.datamodules import (
    EpisodeGroupDataModule,
    MathPromptDataModule,
    OnlineDataModule,
    PromptLoader,
    TrajectoryDataModule,
)
from lit_rft.generation import SamplingSettings
from lit_rft.stages.core.data_check import PROMPTS, BatchCheck
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny import make_model, make_tokenizer
from lit_rft.testing.tiny_stage import FLAT_PLAYER, PLAYER, fit, make_loader, make_offline, make_stage
from lit_rft.transcripts.fingerprint import tokenizer_fingerprint

from .test_mixed_policy_episodes import make as make_groups


def data_module(kind: type, model: Path, folder: Path, **options: Any) -> Any:
    if kind is MathPromptDataModule:
        return MathPromptDataModule(str(model), train_tasks={"chain_sum": 4}, max_trace_length=96)
    settings = {"suite": CorridorSuite(), "data_dir": str(folder), "train_episodes_per_task": 2}
    return kind(model=str(model), **{**settings, **options})


def make(stage: str, model: Path, folder: Path, **options: Any) -> Any:
    if stage == "groups":
        return make_groups(model, folder, **options)[0]
    makers = {"sft": make_stage, "offline": make_offline, "online": make_online, "grpo": make_grpo}
    return makers[stage](model, **options)


@pytest.mark.parametrize(
    ("stage", "kind", "needed"),
    [
        ("sft", OnlineDataModule, "StepTranscripts, as TrajectoryDataModule"),
        ("offline", EpisodeGroupDataModule, "StepTranscripts, as TrajectoryDataModule"),
        ("sft", MathPromptDataModule, "EpisodeJobs, as TrajectoryDataModule"),
        ("online", TrajectoryDataModule, "OnlineBatch, as OnlineDataModule"),
        ("groups", TrajectoryDataModule, "EpisodeGroupBatch, as EpisodeGroupDataModule"),
        ("grpo", TrajectoryDataModule, "PromptBatch, as MathPromptDataModule"),
    ],
)
def test_data_modules_of_another_kind(
    stage: str, kind: type, needed: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    data = data_module(kind, tiny_model_folder, tmp_path)
    with pytest.raises(ValueError, match=f"needs a data module that yields {needed} does: got {kind.__name__}, which"):
        fit(make(stage, tiny_model_folder, tmp_path), data, 1)


@pytest.mark.parametrize("stage", ["sft", "online", "groups", "grpo"])
def test_batches_of_another_kind(stage: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    prompts = PromptLoader(make_prompts(tiny_model_folder), batch_size=2)
    loader = make_loader(tiny_model_folder) if stage == "grpo" else prompts
    with pytest.raises(ValueError, match=r"needs batches with \w+.*DataModule gives them\), got (StepT|PromptB)"):
        fit(make(stage, tiny_model_folder, tmp_path), loader, 1)


@pytest.mark.parametrize("agent", [PLAYER, FLAT_PLAYER])
@pytest.mark.parametrize("stage", ["sft", "offline"])
def test_another_agent(stage: str, agent: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    other = FLAT_PLAYER if agent is PLAYER else PLAYER
    data = data_module(TrajectoryDataModule, tiny_model_folder, tmp_path, agent=other)
    own, theirs = type(agent).__name__, type(other).__name__
    message = f"agent must be the same .* has {own}.*, .* has {theirs}.*takes the stage's"
    with pytest.raises(ValueError, match=message):
        fit(make(stage, tiny_model_folder, tmp_path, agent=agent), data, 1)
    loader = make_loader(tiny_model_folder, agent=other, outcomes=stage == "offline")
    with pytest.raises(ValueError, match=f"levels {', '.join(agent.levels)}, but the transcript of find-plant/. is of"):
        fit(make(stage, tiny_model_folder, tmp_path, agent=agent), loader, 1)


def test_a_stage_is_evaluated_with_the_data_of_another_stage(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage: Any = make_stage(tiny_model_folder)
    stage.trainer = SimpleNamespace(datamodule=data_module(OnlineDataModule, tiny_model_folder, tmp_path))
    stage.setup("validate")
    with pytest.raises(ValueError, match="OnlineDataModule, which yields OnlineBatch"):
        stage.setup("fit")


def test_other_prompts(tiny_model_folder: Path, tmp_path: Path) -> None:
    agent = dataclasses.replace(PLAYER, prompts=HierarchyPrompts(high="Other."))
    data = data_module(TrajectoryDataModule, tiny_model_folder, tmp_path, agent=agent)
    with pytest.raises(ValueError, match="agent must be the same for stage and data module"):
        fit(make_stage(tiny_model_folder, agent=PLAYER), data, 1)


def other_model(folder: Path, change: str) -> Path:
    """A model with a tokenizer that differs in one respect."""
    tokenizer = make_tokenizer()
    if change == "template":
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_start|> ")
    elif change == "ids":  # the same tokens under other numbers, no more and no less
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        vocabulary = state["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    elif change == "more":
        tokenizer.add_tokens(["corridor", "room"])
    make_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("stage", "change"),
    [("sft", "template"), ("sft", "ids"), ("sft", "more"), ("online", "ids"), ("groups", "ids"), ("grpo", "ids")],
)
def test_token_ids_of_another_tokenizer(stage: str, change: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    model = other_model(tmp_path / "other", change)
    kinds = {"sft": TrajectoryDataModule, "grpo": MathPromptDataModule, "groups": EpisodeGroupDataModule}
    data = make_data(model, tmp_path) if stage == "online" else data_module(kinds[stage], model, tmp_path)
    with pytest.raises(ValueError, match=r"token ids are of the tokenizer of .*other.*give the data module the policy"):
        fit(make(stage, tiny_model_folder, tmp_path), data, 1)


def test_batches_without_tokens_are_no_tokens_of_another_model(tiny_model_folder: Path) -> None:
    """Their prompts are empty: whatever is said of them later, it is not this."""
    stage = make_grpo(tiny_model_folder)
    stage.configure_model()
    (prompt,) = make_prompts(tiny_model_folder, 1, traces=0)
    empty = dataclasses.replace(prompt, ids=[])
    BatchCheck()(stage, PromptBatch([empty]), PROMPTS)
    with pytest.raises(ValueError, match="the data hold token 9999, but the policy"):
        BatchCheck()(stage, PromptBatch([dataclasses.replace(prompt, ids=[9999])]), PROMPTS)


def test_a_copy_of_the_tokenizer_will_do(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = other_model(tmp_path / "copy", "nothing")
    fit(make_stage(tiny_model_folder), data_module(TrajectoryDataModule, model, tmp_path), 1)
    a, b = make_tokenizer(), make_tokenizer()
    b.padding_side = "left"  # of no matter
    assert tokenizer_fingerprint(a) == tokenizer_fingerprint(b)


def test_token_ids_out_of_range_and_other_ends_of_turns(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = other_model(tmp_path / "other", "nothing")
    loader = make_loader(model)
    for episode in loader.episodes:
        episode[0].input_ids[1] = 999
    with pytest.raises(ValueError, match=r"the data hold token 999, but the policy .* has \d+ tokens"):
        fit(make_stage(tiny_model_folder), loader, 1)
    prompts = [dataclasses.replace(p, traces=[[5, 999]]) for p in make_prompts(tiny_model_folder)]
    with pytest.raises(ValueError, match="the data hold token 999"):
        fit(make_grpo(tiny_model_folder), PromptLoader(prompts, batch_size=2), 1)
    loader = make_loader(model)
    for episode in loader.episodes:
        for transcript in episode:
            transcript.end_of_turn_id = 0
    with pytest.raises(ValueError, match=r"end with token 0, those of the policy .* with 2: they are of another"):
        fit(make_stage(tiny_model_folder), loader, 1)


def test_data_loaders_of_ones_own_will_do(tiny_model_folder: Path) -> None:
    """torch's, over step batches that were made beforehand."""
    batches = list(make_loader(tiny_model_folder))
    stage = make_stage(tiny_model_folder)
    fit(stage, DataLoader(batches, batch_size=None), 2)  # type: ignore[arg-type]
    assert stage.global_step == 2


@pytest.fixture
def model_of_positions(tmp_path: Path) -> Path:
    """GPT-2 with a table of 64 positions."""
    make_model("gpt2", vocab_size=len(make_tokenizer()), max_position_embeddings=64).save_pretrained(tmp_path / "gpt2")
    make_tokenizer().save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_an_agent_that_is_longer_than_the_models_positions(model_of_positions: Path) -> None:
    with pytest.raises(ValueError, match=r"agent\.max_length is 2048, .* has positions for 64 tokens"):
        fit(make_stage(model_of_positions), make_loader(model_of_positions))


def test_data_and_completions_that_are_longer_than_the_models_positions(model_of_positions: Path) -> None:
    agent = dataclasses.replace(PLAYER, max_length=64)
    with pytest.raises(ValueError, match=r"the data hold \d+ tokens in a row, but .* for 64"):
        fit(make_stage(model_of_positions, agent=agent), make_loader(model_of_positions))
    stage = make_grpo(model_of_positions, sampling=SamplingSettings(max_new_tokens=64, temperature=1.0))
    with pytest.raises(ValueError, match=r"max_new_tokens is 64, .* positions for 64 tokens, the prompt included"):
        fit(stage, PromptLoader(make_prompts(model_of_positions), batch_size=2))


def test_positions_that_depend_on_other_sequences_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = make_model(vocab_size=len(make_tokenizer()), rope_parameters=rope, max_position_embeddings=900)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    for length in (900, 901):
        caplog.clear()
        fit(make_stage(tmp_path, agent=dataclasses.replace(PLAYER, max_length=length)), make_loader(tmp_path), 1)
        assert ("depend on the longest sequence of a pass beyond 900 tokens" in caplog.text) == (length > 900)
