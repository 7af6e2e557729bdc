"""Token-level critics: Q over the vocabulary as a low-rank head on the output embedding, and V (ILQL)."""

import copy

import torch
from torch import Tensor, nn

from lit_rft.models.backbone import causal_lm


def output_embedding(model: nn.Module) -> Tensor:
    """Return the output layer's weight of a causal language model, without gradients, [V, D]."""
    weight: Tensor = causal_lm(model).get_output_embeddings().weight
    return weight.detach()


class LowRankQ(nn.Module):
    r"""Q(h, .) over the vocabulary without a weight per token.

        Q(h, w) = scale E_w . A relu(B h) + b(h)

    E is the model's output embedding, which is not part of this module. There are (2 D + 2) rank + D + 1 weights
    for any vocabulary: for D = 4096 and rank 256 these are 2.1 million, where a separate output layer
    for 150,000 tokens has 614 million.

    Args:
        size: of the hidden states, D.
        rank: of the map from hidden states to directions in the embedding.
        scale: of the embedding, so that a typical row has norm 1.
    """

    def __init__(self, size: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, rank), nn.Linear(rank, size + 1)
        self.scale = scale
        nn.init.zeros_(self.up.weight)  # before any training each value is 0
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return directions in the embedding, [N, D], and b(h), [N], both in float32."""
        with torch.autocast(hidden.device.type, enabled=False):  # differences of values are small: lost in bf16
            out = self.up(torch.relu(self.down(hidden.float())))
        return out[:, :-1] * self.scale, out[:, -1]

    def of_tokens(self, hidden: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
        """Return Q of one token per state, [N], without computing it for the vocabulary."""
        direction, baseline = self(hidden)
        return (direction * embedding[tokens].float()).sum(1) + baseline

    def of_vocabulary(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return Q of all tokens, [N, V] in float32."""
        direction, baseline = self(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return (direction.to(embedding.dtype) @ embedding.T).float() + baseline[:, None]


class TokenCritic(nn.Module):
    """Two Q, their slowly following copies (`polyak_update`), and V, for all levels of an agent.

    Only the prompt tells levels apart, as with GLIDER's shared heads.

    Args:
        size: of the hidden states.
        rank: of the Q heads.
        scale: see `LowRankQ`.
    """

    def __init__(self, size: int, rank: int, scale: float) -> None:
        super().__init__()
        self.online = nn.ModuleList(LowRankQ(size, rank, scale) for _ in range(2))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        last = nn.Linear(size, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.value = nn.Sequential(nn.Linear(size, size), nn.ReLU(), last)

    def v(self, hidden: Tensor) -> Tensor:
        """Return V(h), [N] in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.value(hidden.float()).squeeze(-1)
        return values

    @torch.no_grad()
    def target_q(self, hidden: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
        """Return the smaller target Q of one token per state, [N]."""
        first, second = (head.of_tokens(hidden, embedding, tokens) for head in self._heads(self.target))
        return torch.minimum(first, second)

    @torch.no_grad()
    def target_q_of_vocabulary(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the smaller target Q of all tokens, [N, V]."""
        first, second = (head.of_vocabulary(hidden, embedding) for head in self._heads(self.target))
        return torch.minimum(first, second)

    @property
    def online_heads(self) -> list[LowRankQ]:
        return self._heads(self.online)

    @staticmethod
    def _heads(heads: nn.ModuleList) -> list[LowRankQ]:
        return [head for head in heads if isinstance(head, LowRankQ)]
