"""Gradients of log-probabilities computed together with the logits, for a frozen output layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_rft.models.backbone import causal_lm


def obstacle(model: nn.Module) -> str | None:
    """Return why a model's logits have to be recomputed in the backward pass, or None."""
    head = causal_lm(model).get_output_embeddings()
    return "the output layer trains" if any(p.requires_grad for p in head.parameters()) else None


class ChosenLogProbs(torch.autograd.Function):
    """The function log softmax(z)[w] of rows z [N, V] and choices w [N].

    (`cross_entropy` writes gradients of zeros first.)
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, choices: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        ctx.save_for_backward(log_probs, choices)
        return log_probs.gather(-1, choices[:, None])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        log_probs, choices = ctx.saved_tensors
        grad_logits = log_probs.exp_().mul_(-grad[:, None])  # in place: autograd rejects a second backward pass
        return grad_logits.scatter_add_(-1, choices[:, None], grad[:, None]), None


class RowwiseGradients(torch.autograd.Function):
    """A function of rows whose outputs [N] each depend only on their own row of the input [N, D].

    The gradient of a sum over rows then holds the gradient of each row. It is computed together with the logits, so
    that the backward pass need not recompute them. Nothing else in the function may be trainable.
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
