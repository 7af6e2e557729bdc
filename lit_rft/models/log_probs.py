"""Log-probabilities of chosen tokens, without ever holding logits for a whole batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lit_rft.models.backbone import causal_lm, output_logits
from lit_rft.models.layouts import batch_hidden_states
from lit_rft.transcripts import TranscriptBatch

_CUDA_TOKENS = 2048  # fewest at a time on a GPU, where the output layer trains: 1.2 GB of logits for 150,000 tokens


class UtteranceLogProbs(NamedTuple):
    """What a policy says of the utterances of a batch; padding holds 0."""

    tokens: Tensor  # [U, L] log pi(w_i | s, w_<i)
    end: Tensor  # [U, L] log pi(end of turn | s, w_<i); 0 where it was not wanted
    entropy: Tensor  # [U, L] of pi(. | s, w_<i), in nats; 0 unless it was asked for


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
    """One forward pass over a batch; logits are made for action tokens only, `chunk_tokens` at a time (2,048 or more on
    a GPU, where the output layer trains), and are not kept for the backward pass: memory does not grow with vocabulary
    times sequence length. An output layer that trains makes them again there; of a frozen one the gradients of single
    tokens are kept instead.

    Args:
        temperature: of the distribution, > 0.
        hidden: final hidden states [B, T, D] of this batch, where they are known: then there is no pass.
        ends: compute those of the end of turn.
        entropy: compute it, too.
    """
    if hidden is None:
        hidden = batch_hidden_states(model, batch)
    targets = batch.input_ids.flatten()[batch.utterance_tokens[batch.utterance_mask]]
    features = hidden.flatten(0, 1)[batch.preceding[batch.utterance_mask]]
    chosen = chosen_log_probs(
        model, features, targets, end_of_turn_id=end_of_turn_id, temperature=temperature, chunk_tokens=chunk_tokens,
        ends=ends, entropy=entropy,
    )  # fmt: skip
    padded = []
    for values in chosen:
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of `targets` [N] and of the end-of-turn token [N], at hidden states [N, D]; and the entropy [N]
    (0 for what was not asked for)."""
    if temperature <= 0 or chunk_tokens < 1:
        raise ValueError(f"temperature must be > 0 and chunk_tokens >= 1, got {temperature} and {chunk_tokens}")

    def chunk(part: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = output_logits(model, part)
        logits = logits if temperature == 1.0 else logits / temperature
        if not (ends or entropy):  # one pass forth and one back over the logits
            chosen: Tensor = _Chosen.apply(logits, wanted)
            return chosen, torch.zeros_like(chosen), torch.zeros_like(chosen)
        total = logits.logsumexp(-1)
        # H = log sum exp(z) - sum p z
        spread = total - (logits.softmax(-1) * logits).sum(-1) if entropy else torch.zeros_like(total)
        end = logits[:, end_of_turn_id] - total if ends else torch.zeros_like(total)
        return logits.gather(-1, wanted[:, None]).squeeze(-1) - total, end, spread

    frozen = not any(p.requires_grad for p in causal_lm(model).get_output_embeddings().parameters())
    by_row = frozen and hidden.requires_grad and torch.is_grad_enabled()
    if hidden.is_cuda and not frozen:  # each chunk casts the output layer's weight and adds up its whole gradient
        chunk_tokens = max(chunk_tokens, _CUDA_TOKENS)
    parts = []
    for start in range(0, max(len(targets), 1), chunk_tokens):
        window = slice(start, start + chunk_tokens)
        if by_row:
            parts.append(_RowByRow.apply(hidden[window], targets[window], chunk, (True, ends, entropy)))
        else:
            parts.append(checkpoint(chunk, hidden[window], targets[window], use_reentrant=False))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


class _Chosen(torch.autograd.Function):
    """log softmax(z)[w] of rows z [N, V] and choices w [N]. (`cross_entropy` writes gradients of zeros first.)"""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        ctx.save_for_backward(log_probs, wanted)
        return log_probs.gather(-1, wanted[:, None])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        log_probs, wanted = ctx.saved_tensors
        slopes = log_probs.exp_().mul_(-grad[:, None])  # in place: a second backward pass would be refused
        return slopes.scatter_add_(-1, wanted[:, None], grad[:, None]), None


class _RowByRow(torch.autograd.Function):
    """A function of rows, each output [N] of which depends on its own row of the input [N, D] alone: then the gradient
    of a sum over rows holds that of each row. It is made at once, while the logits are there, and they need not be made
    again in the backward pass. Nothing else that the function uses may train.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, targets: Tensor, function: Any, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            outputs = function(leaf, targets)
            needed = [out if want and out.requires_grad else None for out, want in zip(outputs, wanted, strict=True)]
            last = max((i for i, out in enumerate(needed) if out is not None), default=-1)
            slopes = [
                torch.autograd.grad(out.sum(), leaf, retain_graph=i < last)[0] if out is not None else None
                for i, out in enumerate(needed)
            ]
        ctx.save_for_backward(*slopes)
        ctx.dtype = rows.dtype
        return tuple(out.detach() for out in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        terms = [
            gradient[:, None] * slope  # in float32 or wider: a token's weight is not rounded
            for gradient, slope in zip(gradients, ctx.saved_tensors, strict=True)
            if slope is not None
        ]
        return sum(terms[1:], terms[0]).to(ctx.dtype), None, None, None
