"""One GRPO step over two-turn episodes with thinking templates: token for token, what was generated is trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from families import FAMILIES, family_tokenizer

from lit_rft.agents import FlatAgent, HierarchicalAgent, Tags
from lit_rft.datamodules import EpisodeGroupDataModule
from lit_rft.envs import PoolSettings
from lit_rft.generation import Completion, ConversationGenerator, SamplingSettings
from lit_rft.stages import (
    ActingSettings,
    BatchingSettings,
    MixedPolicyEpisodes,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny import CHATML, make_model, make_tokenizer
from lit_rft.testing.tiny_stage import ADAPTERS, differs, fit, trained
from lit_rft.transcripts import ChatFormat, TranscriptBatch

THINKING = CHATML.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%").replace(
    "{{ m['content'] }}",
    "{{ m['content'].split('</think>')[-1].strip() if m['role'] == 'assistant' else m['content'] }}",
)
CLOSING = "</think>"


OPENINGS = {"own": "<think>\n", "qwen3": "", "deepseek-r1": "<think>\n"}  # of thoughts, by the generation prompt


@pytest.fixture(scope="module")
def thinking_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models that like to end their thoughts, with the tokens and templates of a family."""
    return {name: make_thinking_model(name, tmp_path_factory.mktemp(name)) for name in OPENINGS}


def make_thinking_model(family: str, folder: Path) -> Path:
    tokenizer = make_tokenizer(THINKING) if family == "own" else family_tokenizer(FAMILIES[family])
    tokenizer.add_tokens(["<think>", CLOSING])
    model = make_model(vocab_size=len(tokenizer))
    weights = model.lm_head.weight
    with torch.no_grad():
        ids = torch.tensor([ChatFormat(tokenizer).head("Act.", "You are in room 0.")])
        opens = [] if OPENINGS[family] else ["<think>"]
        marks = tokenizer.convert_tokens_to_ids([CLOSING, tokenizer.eos_token, *opens])
        likely = model(ids).logits[0].softmax(-1).mean(0).argmax()
        weights[marks] = weights[likely].clone()
        while model(ids).logits[0].softmax(-1)[:, marks].sum(-1).mean() < (0.75 if opens else 0.5):
            weights[marks] *= 1.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Listener:
    """Keeps what the generator reads and writes in each turn of each conversation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turns: list[tuple[list[int], Completion]] = []  # everything read, what was written
        self._read: dict[tuple[int, int], list[int]] = {}
        sample, forget, close = ConversationGenerator.sample, ConversationGenerator.forget, ConversationGenerator.close

        def listen(generator: Any, prompts: Mapping[int, Sequence[int]]) -> dict[int, Completion]:
            written = sample(generator, prompts)
            for slot, ids in prompts.items():
                context = [*self._read.get((id(generator), slot), []), *ids]
                self.turns.append((context, written[slot]))
                self._read[id(generator), slot] = [*context, *written[slot].ids]
            return written

        def drop(generator: Any, slot: int) -> None:
            self._read.pop((id(generator), slot), None)
            forget(generator, slot)

        def end(generator: Any, slot: int) -> None:
            self._read.pop((id(generator), slot), None)
            close(generator, slot)

        monkeypatch.setattr(ConversationGenerator, "sample", listen)
        monkeypatch.setattr(ConversationGenerator, "forget", drop)
        monkeypatch.setattr(ConversationGenerator, "close", end)


def trained_decisions(batches: Sequence[TranscriptBatch]) -> list[tuple[list[int], list[int]]]:
    """Context and utterance of each decision in micro-batches, read from the tensors that the model gets."""
    decisions = []
    for batch in batches:
        ids, positions = batch.input_ids.flatten().tolist(), batch.position_ids.flatten().tolist()
        for tokens, mask in zip(batch.utterance_tokens, batch.utterance_mask, strict=True):
            places = tokens[mask].tolist()
            start = places[0] - positions[places[0]]
            decisions.append((ids[start : places[0]], ids[places[0] : places[-1] + 1]))
    return decisions


@pytest.mark.filterwarnings("ignore::lit_rft.transcripts.ChatTemplateWarning")
@pytest.mark.parametrize(
    ("family", "levels", "keep", "packing"),
    [
        ("own", 1, True, False), ("own", 1, False, True), ("own", 2, True, True), ("own", 2, False, False),
        ("qwen3", 1, False, False), ("qwen3", 2, True, True),
        ("deepseek-r1", 1, True, True), ("deepseek-r1", 2, False, False),
    ],
    ids=str,
)  # fmt: skip
def test_what_trains_is_what_was_generated(
    family: str, levels: int, keep: bool, packing: bool,
    thinking_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    thinking_model = thinking_models[family]
    L.seed_everything(0, verbose=False)
    agent: Any = FlatAgent("Act.", 900, Tags(), keep_thoughts=keep)
    if levels == 2:
        agent = HierarchicalAgent(max_length=900, subgoal_steps=1, answer_format=Tags(), keep_thoughts=keep)
    stage = MixedPolicyEpisodes(
        PolicySettings(model=str(thinking_model), lora=ADAPTERS), OptimizerSettings(learning_rate=5e-3),
        ObjectiveSettings(group_size=3, traces_per_group=0, entropy_coef=0.1), SamplingSettings(12, 1.0),
        ActingSettings(SamplingSettings(12), parallel_episodes=2, pool=PoolSettings(threads=True)), agent,
        BatchingSettings(packing=packing),
    )  # fmt: skip
    data = EpisodeGroupDataModule(
        model=str(thinking_model), data_dir=str(tmp_path), train_episodes_per_task=1, batch_size=2,
        suite=CorridorSuite(step_limit=2),
    )  # fmt: skip
    listener, batches = Listener(monkeypatch), list[TranscriptBatch]()
    optimize = stage.optimize
    monkeypatch.setattr(stage, "optimize", lambda micro, loss: (batches.extend(micro), optimize(micro, loss))[1])
    stage.configure_model()
    before = trained(stage)
    fit(stage, data, 1)
    assert differs(before, trained(stage))

    turns = listener.turns
    assert len(turns) == 2 * 3 * 2 * levels  # tasks, episodes, turns
    generated = sorted((context, completion.ids) for context, completion in turns)
    assert sorted(trained_decisions(batches)) == generated
    chat = stage.chat
    assert chat is not None and chat.thoughts.opening == OPENINGS[family]
    closing, opening = chat.tokenizer.convert_tokens_to_ids([CLOSING, "<think>"])
    assert any(closing in ids for _, ids in generated) and any(closing not in ids for _, ids in generated)
    assert any(closing in context for context, _ in generated) == keep
    if OPENINGS[family]:
        assert all(context.count(opening) == 1 for context, _ in generated) or keep
    else:
        assert any(opening in ids and closing in ids for _, ids in generated)
    # and the log-probabilities of sampling are those of the training pass
    by_turn = {(tuple(context), tuple(c.ids)): c.log_probs for context, c in turns}
    for rollout in stage.samples:
        for transcript, log_probs in zip(rollout.transcripts, rollout.sampled_log_probs, strict=True):
            expected = [
                value for k, start in enumerate(transcript.utterance_starts)
                for value in by_turn[tuple(transcript.input_ids[:start]), tuple(transcript.utterance_ids(k))]
            ]  # fmt: skip
            assert log_probs == pytest.approx(expected, abs=1e-5)  # equal turns of two episodes differ by rounding
