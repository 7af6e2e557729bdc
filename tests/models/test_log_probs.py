"""One packed pass with chunked logits equals one default pass per transcript, over several architectures."""

from typing import Any

import pytest
import torch

from lit_rft.agents import HierarchicalAgent, HierarchyPrompts
from lit_rft.models import LoraSettings, utterance_log_probs
from lit_rft.models.backbone import add_lora, output_logits
from lit_rft.models.log_probs import chosen_log_probs
from lit_rft.testing.tiny import make_episode, make_model, make_tokenizer, with_adapters
from lit_rft.transcripts import (
    ChatFormat,
    Transcript,
    TranscriptBatch,
    collate_packed,
    collate_padded,
    split_by_tokens,
)

ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"sliding_window": 64},
    "gemma3_text": {"sliding_window": 64},
    "mistral": {"sliding_window": 64},
}


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer())


@pytest.fixture(scope="module")
def transcripts(chat: ChatFormat) -> list[Transcript]:
    agent = HierarchicalAgent(HierarchyPrompts(high="Plan.", low="Act."))
    episodes = [make_episode(seed, num_steps) for seed, num_steps in enumerate((1, 3, 2, 5))]
    return [t for e in episodes for t in agent.transcripts(e, chat)]


def _plain(model: Any, transcript: Transcript, temperature: float = 1.0) -> list[list[tuple[float, float]]]:
    """(log pi(token), log pi(end of turn)) of every utterance, from the full logits of one transcript."""
    logits = model(input_ids=torch.tensor([transcript.input_ids])).logits[0].float() / temperature
    log_probs = logits.log_softmax(-1)
    spans = zip(transcript.utterance_starts, transcript.utterance_ends, strict=True)
    return [
        [(log_probs[i - 1, transcript.input_ids[i]].item(), log_probs[i - 1, 2].item()) for i in range(start, end + 1)]
        for start, end in spans
    ]


def _compare(model: Any, transcripts: list[Transcript], batch: TranscriptBatch, **options: Any) -> None:
    with torch.no_grad():
        got = utterance_log_probs(model, batch, end_of_turn_id=2, **options)
        temperature = options.get("temperature", 1.0)
        by_id = {(t.episode_id, t.level): _plain(model, t, temperature) for t in transcripts}
    seen: dict[tuple[str, int], int] = {}
    for u in range(len(batch.level)):
        key = (batch.episode_ids[int(batch.transcript_index[u])], batch.levels[int(batch.level[u])])
        expected = by_id[key][seen.get(key, 0)]
        seen[key] = seen.get(key, 0) + 1
        for i, (token, end) in enumerate(expected):
            assert got.tokens[u, i].item() == pytest.approx(token, abs=2e-4)
            assert got.end[u, i].item() == pytest.approx(end, abs=2e-4)
        assert not got.tokens[u, len(expected) :].any()
    assert sum(seen.values()) == sum(t.num_decisions for t in transcripts)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True])
def test_packed_and_padded_equal_separate_passes(architecture: str, lora: bool, transcripts: list[Transcript]) -> None:
    model = make_model(architecture, **ARCHITECTURES[architecture])
    if lora:
        model = with_adapters(model)
    model = model.eval()
    _compare(model, transcripts, collate_padded(transcripts, 0))
    _compare(model, transcripts, collate_packed(transcripts, 0, row_tokens=500), chunk_tokens=7)


def test_temperature(transcripts: list[Transcript]) -> None:
    model = make_model()
    _compare(model, transcripts, collate_padded(transcripts, 0), temperature=0.5)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        utterance_log_probs(model, collate_padded(transcripts, 0), end_of_turn_id=2, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_tokens >= 1"):
        utterance_log_probs(model, collate_padded(transcripts, 0), end_of_turn_id=2, chunk_tokens=0)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mamba", "bloom"])
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_of_all_layouts_are_those_of_the_models_own_logits(
    architecture: str, lora: bool, transcripts: list[Transcript]
) -> None:
    """The reference is transformers alone, one transcript after the other."""
    if lora and architecture not in ARCHITECTURES:
        pytest.skip("adapters are tried on the others")

    def gradients(batches: list[TranscriptBatch], chunk: int | None) -> list[torch.Tensor]:
        settings = {"state_size": 4} if architecture == "mamba" else ARCHITECTURES.get(architecture, {})
        model = make_model(architecture, **settings)
        model = (with_adapters(model) if lora else model).double()
        for batch in batches:
            if chunk is None:
                (tokens, end) = _plain_utterances(model, batch)
            else:
                result = utterance_log_probs(model, batch, end_of_turn_id=2, chunk_tokens=chunk)
                tokens, end = result.tokens[batch.utterance_mask], result.end[batch.utterance_mask]
            (tokens.sum() + 0.3 * end.sum()).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    first = transcripts[:4]
    plain = gradients([collate_padded([transcript], 0) for transcript in first], None)
    padded = gradients([collate_padded(first, 0)], 10_000)
    packed = gradients([collate_packed(first, 0, 400)], 11)
    for expected, *layouts in zip(plain, padded, packed, strict=True):
        for actual in layouts:  # norms and rotations are float32 inside
            assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6


def _plain_utterances(model: Any, batch: TranscriptBatch) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs = model(input_ids=batch.input_ids).logits[0].log_softmax(-1)
    places = batch.utterance_tokens[batch.utterance_mask]
    before = log_probs[places - 1]
    return before.gather(-1, batch.input_ids[0, places][:, None]).squeeze(-1), before[:, 2]


@pytest.mark.parametrize(("architecture", "packs"), [("llama", True), ("mamba", False), ("bloom", False)])
def test_a_model_that_cannot_pack_warns_once(
    architecture: str, packs: bool, transcripts: list[Transcript], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(architecture, **({"state_size": 4} if architecture == "mamba" else {}))
    for _ in range(2):
        utterance_log_probs(model, collate_packed(transcripts[:3], 0, 10_000), end_of_turn_id=2)
    messages = [record.message for record in caplog.records if record.name.startswith("lit_rft")]
    assert len(messages) == (not packs) and all("unpacks packed sequences to one per row" in line for line in messages)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_output_logits_are_the_models_own(architecture: str) -> None:
    model = make_model(architecture, **ARCHITECTURES[architecture])
    ids = torch.arange(5, 15)[None]
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(output_logits(model, hidden), model(input_ids=ids).logits)


def test_packing_wastes_less_than_padding(transcripts: list[Transcript]) -> None:
    real = sum(len(t) for t in transcripts)
    packed = collate_packed(transcripts, 0, 600)
    assert real <= packed.input_ids.numel() < collate_padded(transcripts, 0).input_ids.numel()
    assert packed.num_tokens == collate_padded(transcripts, 0).num_tokens == real
    assert sorted(packed.episode_ids) == sorted(t.episode_id for t in transcripts)


def test_split_by_tokens_respects_the_budget(transcripts: list[Transcript]) -> None:
    groups = split_by_tokens(transcripts, 500)
    assert sorted(map(id, (t for g in groups for t in g))) == sorted(map(id, transcripts))
    for group in groups:
        assert max(map(len, group)) * len(group) <= 500 or len(group) == 1
    assert len(split_by_tokens(transcripts, 10**9)) == 1
    assert len(split_by_tokens(transcripts, 1)) == len(transcripts)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one transcript"):
        collate_padded([], 0)


def test_no_more_logits_than_a_chunk_are_ever_made(transcripts: list[Transcript]) -> None:
    """Memory for logits does not grow with the batch: neither forward nor backward makes more than a chunk of rows."""
    model = make_model()
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[0]))
    batch = collate_padded(transcripts, 0)
    result = utterance_log_probs(model, batch, end_of_turn_id=2, chunk_tokens=16)
    actions = int(batch.utterance_mask.sum())
    assert max(rows) == 16 and sum(rows) == actions < batch.num_tokens
    result.tokens.sum().backward()
    assert max(rows) == 16 and sum(rows) == 2 * actions  # made once more, and not kept


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("trained", ["adapters", "adapters and head", "all"])
@pytest.mark.parametrize(("ends", "entropy"), [(False, False), (True, False), (False, True), (True, True)])
def test_gradients_equal_those_of_full_logits(architecture: str, trained: str, ends: bool, entropy: bool) -> None:
    """Whatever the output layer does, chunk by chunk, in float64."""
    model = make_model(architecture, **ARCHITECTURES[architecture]).double()
    if trained != "all":
        model = add_lora(model, LoraSettings(rank=2, dropout=0.0, target_modules="all-linear")).double()
    head = model.get_output_embeddings()
    if trained == "adapters and head":
        head.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 272, (11,), generator=generator)
    weights = torch.randn(3, 11, generator=generator, dtype=torch.float64)

    def plain() -> list[torch.Tensor]:
        log_probs = (output_logits(model, hidden) / 0.7).log_softmax(-1)
        spread = -(log_probs.exp() * log_probs).sum(-1)
        return [log_probs.gather(-1, targets[:, None])[:, 0], log_probs[:, 2] * ends, spread * entropy]

    def ours() -> Any:
        return chosen_log_probs(
            model, hidden, targets, end_of_turn_id=2, temperature=0.7, chunk_tokens=4, ends=ends, entropy=entropy
        )

    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    expected, actual = torch.stack(plain()), torch.stack(ours())
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad((weights * values).sum(), wanted) for values in (expected, actual)]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_gradients_in_half_precision_keep_the_weights_of_tokens() -> None:
    """Under autocast a token's gradient is rounded once, not its weight before that."""
    model = add_lora(make_model(), LoraSettings(rank=2, dropout=0.0, target_modules="all-linear"))
    hidden = torch.randn(200, 32, dtype=torch.bfloat16, requires_grad=True)
    targets, weights = torch.randint(0, 272, (200,)), 1 + torch.rand(200) / 256  # nearly 1: equal in bf16
    with torch.autocast("cpu", torch.bfloat16):
        log_probs, *_ = chosen_log_probs(model, hidden, targets, end_of_turn_id=2, ends=False)
    (actual,) = torch.autograd.grad((weights * log_probs).sum(), hidden)
    wide = hidden.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        plain = output_logits(model, wide).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (expected,) = torch.autograd.grad((weights * plain).sum(), wide)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    with pytest.raises(RuntimeError, match=r"does not require grad|differentiate twice"):
        (again,) = torch.autograd.grad(
            chosen_log_probs(model, wide, targets, end_of_turn_id=2)[0].sum(), wide, create_graph=True
        )
        again.sum().backward()
