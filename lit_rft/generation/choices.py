"""Choices: utterances that can only be one of a given set, by a trie of their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class TokenTrie:
    """A set of token sequences, of which an utterance has to be one.

    Its distribution is the model's, renormalised over the allowed tokens at each position: the probabilities of the
    sequences sum to one.

    Args:
        sequences: token ids, each with the token that ends it.

    Raises:
        ValueError: There is none, one is empty, or one is the beginning of another.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self.root: dict[int, Any] = {}  # token -> what may follow it
        unique = {tuple(sequence) for sequence in sequences}
        self.longest = max(map(len, unique), default=0)
        for sequence in unique:
            node = self.root
            for token in sequence:
                node = node.setdefault(token, {})
        if not unique or () in unique or _leaves(self.root) != len(unique):
            raise ValueError(
                f"expected token sequences of which none is the beginning of another, got {sorted(unique)}: end each "
                "with the end-of-turn token"
            )

    def allowed_along(self, ids: Sequence[int]) -> list[list[int]]:
        """Return the allowed token ids at each position of a sequence, in ascending order.

        Raises:
            ValueError: The sequence leaves the trie.
        """
        allowed: list[list[int]] = []
        node = self.root
        for token in ids:
            if token not in node:
                raise ValueError(f"token {token} at position {len(allowed)} is none of the allowed {sorted(node)}")
            allowed.append(sorted(node))
            node = node[token]
        return allowed


def _leaves(node: dict[int, Any]) -> int:
    return sum(map(_leaves, node.values())) if node else 1


class Constraints:
    """Positions of slots in their tries, during sampling.

    Args:
        choices: slot -> its trie; other slots are free.
        max_new_tokens: of an utterance.

    Raises:
        ValueError: A trie has sequences that are longer.
    """

    def __init__(self, choices: Mapping[int, TokenTrie], max_new_tokens: int) -> None:
        self._max_new_tokens = max_new_tokens
        self._nodes: dict[int, dict[int, Any]] = {}
        for slot, trie in choices.items():
            self.begin(slot, trie)

    def begin(self, slot: int, trie: TokenTrie) -> None:
        """Constrain the next utterance of a slot.

        Raises:
            ValueError: The trie has sequences that are too long.
        """
        if trie.longest > self._max_new_tokens:
            raise ValueError(
                f"an utterance to choose has {trie.longest} tokens, and sampling.max_new_tokens is "
                f"{self._max_new_tokens}: raise it"
            )
        self._nodes[slot] = trie.root

    def mask(self, logits: Tensor, slots: Sequence[int]) -> Tensor:
        """Return logits [B, V] of the slots' next tokens with those of forbidden tokens at minus infinity."""
        rows = [(row, self._nodes[slot]) for row, slot in enumerate(slots) if slot in self._nodes]
        if not rows:
            return logits
        forbidden = torch.zeros_like(logits, dtype=torch.bool)
        forbidden[[row for row, _ in rows]] = True
        places = torch.tensor([(row, token) for row, node in rows for token in node], device=logits.device)
        forbidden[places[:, 0], places[:, 1]] = False
        return logits.masked_fill(forbidden, -torch.inf)

    def advance(self, slot: int, token: int) -> None:
        """Take the token that a slot has got; at the end of its sequence the slot is free again."""
        if slot in self._nodes:
            node = self._nodes[slot][token]
            if node:
                self._nodes[slot] = node
            else:
                del self._nodes[slot]

    def end(self, slot: int) -> None:
        """Free a slot whose utterance has ended, maybe by a stop in the middle of its sequence."""
        self._nodes.pop(slot, None)
