"""Likelihood and expected length against slow loops and closed forms, in float64."""

import math

import pytest
import torch

from lit_rft.objectives import expected_utterance_length, utterance_likelihood_loss, utterance_log_likelihood


def _random(seed: int = 0, u: int = 4, length: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.log(torch.rand(u, length, generator=generator, dtype=torch.float64))
    end = torch.log(torch.rand(u, length, generator=generator, dtype=torch.float64))
    lengths = torch.randint(1, length + 1, (u,), generator=generator)
    return tokens, end, torch.arange(length) < lengths[:, None]


@pytest.mark.parametrize("average", [True, False])
def test_log_likelihood_equals_a_loop(average: bool) -> None:
    tokens, _, mask = _random()
    for u in range(len(tokens)):
        values = [tokens[u, i].item() for i in range(tokens.shape[1]) if mask[u, i]]
        expected = sum(values) / (len(values) if average else 1)
        got = utterance_log_likelihood(tokens, mask, average_tokens=average)[u].item()
        assert got == pytest.approx(expected, abs=1e-12)


def test_expected_length_equals_a_loop() -> None:
    _, end, mask = _random(1)
    got = expected_utterance_length(end, mask)
    for u in range(len(end)):
        total, going = 0.0, 1.0
        for i in range(int(mask[u].sum())):
            going *= 1 - math.exp(end[u, i].item())
            total += going
        assert got[u].item() == pytest.approx(total, abs=1e-12)


def test_expected_length_of_a_constant_end_probability_is_a_geometric_sum() -> None:
    e, n = 0.25, 7
    end = torch.full((1, n), math.log(e), dtype=torch.float64)
    expected = sum((1 - e) ** i for i in range(1, n + 1))
    assert expected_utterance_length(end, torch.ones(1, n)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("certain", [0.0, -1e-30])
def test_expected_length_is_finite_where_the_end_is_certain(certain: float) -> None:
    end = torch.tensor([[certain, -1.0]], dtype=torch.float64, requires_grad=True)
    length = expected_utterance_length(end, torch.ones(1, 2))
    length.sum().backward()
    assert length.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.isfinite(end.grad).all()  # type: ignore[arg-type]


def test_length_gradient_lowers_the_expected_length() -> None:
    logits = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 5)
    before = expected_utterance_length(torch.nn.functional.logsigmoid(logits), mask)
    before.sum().backward()
    with torch.no_grad():
        after = expected_utterance_length(torch.nn.functional.logsigmoid(logits - 0.1 * logits.grad), mask)  # type: ignore[operator]
    assert after.item() < before.item()


def test_gradcheck() -> None:
    tokens, end, mask = _random(2)
    tokens.requires_grad_(), end.requires_grad_()

    def loss(t: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return utterance_likelihood_loss(t, mask, end_log_probs=e, length_coef=0.3, normalizer=7.0).loss

    assert torch.autograd.gradcheck(loss, (tokens, end))


def test_padding_changes_nothing() -> None:
    tokens, end, mask = _random(3)
    wide = torch.nn.functional.pad
    long_tokens, long_end = (wide(x, (0, 3), value=torch.nan) for x in (tokens, end))
    padded = utterance_likelihood_loss(long_tokens, wide(mask, (0, 3)), end_log_probs=long_end, length_coef=0.5)
    plain = utterance_likelihood_loss(tokens, mask, end_log_probs=end, length_coef=0.5)
    torch.testing.assert_close(padded.loss, plain.loss, rtol=0, atol=1e-12)


def test_micro_batches_with_a_global_normalizer_add_up() -> None:
    tokens, end, mask = _random(4, u=8)
    whole = utterance_likelihood_loss(tokens, mask, end_log_probs=end, length_coef=0.1).loss
    parts = [
        utterance_likelihood_loss(tokens[s], mask[s], end_log_probs=end[s], length_coef=0.1, normalizer=8).loss
        for s in (slice(0, 1), slice(1, 5), slice(5, 8))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=0, atol=1e-12)


def test_every_knob_changes_the_loss() -> None:
    tokens, end, mask = _random(5)
    base = utterance_likelihood_loss(tokens, mask, end_log_probs=end).loss
    assert not torch.isclose(base, utterance_likelihood_loss(tokens, mask, average_tokens=False).loss)
    assert not torch.isclose(base, utterance_likelihood_loss(tokens, mask, end_log_probs=end, length_coef=0.1).loss)
    assert not torch.isclose(base, utterance_likelihood_loss(tokens, mask, normalizer=100.0).loss)


def test_no_utterances_give_zero() -> None:
    empty = torch.zeros(0, 3)
    assert utterance_likelihood_loss(empty, empty).loss.item() == 0.0


def test_bad_arguments_are_named() -> None:
    tokens, end, mask = _random(6)
    with pytest.raises(ValueError, match="utterance_mask must have the shape"):
        utterance_log_likelihood(tokens, mask[:, :2])
    with pytest.raises(ValueError, match="end_log_probs must have 2"):
        expected_utterance_length(end[0], mask[0])
    with pytest.raises(ValueError, match="end_log_probs is needed"):
        utterance_likelihood_loss(tokens, mask, length_coef=0.1)
    with pytest.raises(ValueError, match="length_coef must be >= 0"):
        utterance_likelihood_loss(tokens, mask, length_coef=-0.1)
