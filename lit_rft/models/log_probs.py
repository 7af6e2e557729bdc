"""Log-probabilities of chosen tokens, without storing the logits of a full batch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_rft.models.accel.log_prob_gradients import ChosenLogProbs, RowwiseGradients, obstacle
from lit_rft.models.accel.switch import is_on
from lit_rft.models.backbone import output_logits
from lit_rft.models.forward import hidden_states
from lit_rft.transcripts import TranscriptBatch

_CUDA_TOKENS = 2048  # minimum chunk on a GPU if the output layer trains: 1.2 GB of logits with a vocabulary of 150,000


class UtteranceLogProbs(NamedTuple):
    """A policy's log-probabilities of the utterances of a batch; padding is 0."""

    tokens: Tensor  # [U, L] log pi(w_i | s, w_<i)
    end: Tensor  # [U, L] log pi(end of turn | s, w_<i); 0 without `ends`
    entropy: Tensor  # [U, L] of pi(. | s, w_<i), in nats; 0 without `entropy`


def utterance_log_probs(
    model: nn.Module,
    batch: TranscriptBatch,
    *,
    end_of_turn_id: int,
    temperature: float = 1.0,
    chunk_tokens: int = 256,
    hidden: Tensor | None = None,
    ends: bool = True,
    entropy: bool = False,
) -> UtteranceLogProbs:
    """Compute the log-probabilities of a batch's utterances in one forward pass.

    Logits are computed for utterance tokens only, in chunks, and not kept for the backward pass: memory does not grow
    with vocabulary times sequence length. The backward pass recomputes them for a trainable output layer; for a frozen
    one the gradients of single tokens are kept instead (`log_prob_gradients`).

    A token that was chosen among some (`TranscriptBatch.allowed`) has the log-probability among these.

    Args:
        model: with or without adapters.
        batch: in any layout.
        end_of_turn_id: token that ends an utterance.
        temperature: of the distribution, > 0.
        chunk_tokens: logits are computed in chunks of this many tokens; at least 2,048 on a GPU if the output layer
            trains.
        hidden: final hidden states [B, T, D] of this batch, to skip the forward pass.
        ends: compute the log-probabilities of the end of turn.
        entropy: compute the entropy.
    """
    if hidden is None:
        hidden = hidden_states(model, batch)
    targets = batch.input_ids.flatten()[batch.utterance_tokens[batch.utterance_mask]]
    features = hidden.flatten(0, 1)[batch.preceding[batch.utterance_mask]]
    log_probs = chosen_log_probs(
        model, features, targets, end_of_turn_id=end_of_turn_id, temperature=temperature, chunk_tokens=chunk_tokens,
        ends=ends, entropy=entropy, allowed=batch.allowed,
    )  # fmt: skip
    padded = []
    for values in log_probs:
        grid = values.new_zeros(batch.utterance_mask.shape)
        padded.append(grid.masked_scatter(batch.utterance_mask, values))
    return UtteranceLogProbs(*padded)


def chosen_log_probs(
    model: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    *,
    end_of_turn_id: int,
    temperature: float = 1.0,
    chunk_tokens: int = 256,
    ends: bool = True,
    entropy: bool = False,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the log-probabilities of tokens at hidden states; for the other arguments see `utterance_log_probs`.

    Args:
        hidden: [N, D].
        targets: token ids [N].
        allowed: [N, K] ids among which each target was chosen, -1 in padding and in rows of free targets.

    Returns:
        Log-probabilities of `targets` [N] and of the end of turn [N], and the entropy [N]; 0 if not computed.

    Raises:
        ValueError: A value is out of range.
    """
    if temperature <= 0 or chunk_tokens < 1:
        raise ValueError(f"temperature must be > 0 and chunk_tokens >= 1, got {temperature} and {chunk_tokens}")
    if allowed is not None and ends:
        raise ValueError("the end of turn has no probability of its own among given choices: set length_coef to 0")
    fast = is_on(model, "log_prob_gradients") and allowed is None
    chunk = _chunk_function(model, end_of_turn_id, temperature, ends, entropy, fast)
    frozen = obstacle(model) is None
    rowwise = fast and hidden.requires_grad and torch.is_grad_enabled() and frozen
    if hidden.is_cuda and not frozen:  # each chunk casts the output layer's weight and accumulates its full gradient
        chunk_tokens = max(chunk_tokens, _CUDA_TOKENS)
    parts = []
    for start in range(0, max(len(targets), 1), chunk_tokens):
        window = slice(start, start + chunk_tokens)
        if rowwise:
            parts.append(RowwiseGradients.apply(hidden[window], targets[window], chunk, (True, ends, entropy)))
        else:
            among = None if allowed is None else allowed[window]
            parts.append(checkpoint(chunk, hidden[window], targets[window], among, use_reentrant=False))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def _chunk_function(
    model: nn.Module, end_of_turn_id: int, temperature: float, ends: bool, entropy: bool, fast: bool
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return the function that computes `chosen_log_probs` of one chunk."""

    def chunk(hidden: Tensor, targets: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        logits = output_logits(model, hidden)
        logits = logits if temperature == 1.0 else logits / temperature
        if allowed is not None:
            logits = _among(logits, allowed)
        if fast and not (ends or entropy):  # one forward and one backward pass over the logits
            log_probs: Tensor = ChosenLogProbs.apply(logits, targets)
            return log_probs, torch.zeros_like(log_probs), torch.zeros_like(log_probs)
        total = logits.logsumexp(-1)
        # H = log sum exp(z) - sum p z
        finite = logits if allowed is None else logits.masked_fill(logits == -torch.inf, 0.0)
        nats = total - (logits.softmax(-1) * finite).sum(-1) if entropy else torch.zeros_like(total)
        end = logits[:, end_of_turn_id] - total if ends else torch.zeros_like(total)
        return logits.gather(-1, targets[:, None]).squeeze(-1) - total, end, nats

    return chunk


def _among(logits: Tensor, allowed: Tensor) -> Tensor:
    """Return logits [N, V] with all but the allowed ids [N, K] at minus infinity; rows without any are free."""
    kept = torch.zeros(len(logits), logits.shape[-1] + 1, dtype=torch.bool, device=logits.device)
    kept.scatter_(1, allowed.where(allowed >= 0, logits.shape[-1]), True)  # the last column takes the padding
    return logits.masked_fill(~kept[:, :-1] & (allowed >= 0).any(-1, keepdim=True), -torch.inf)
