"""The interface of samplers in place of this library's own generator, and of their settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from lit_rft.generation.sampling import Completion, SamplingSettings


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter, or all weights of a policy, that a backend has loaded.

    Args:
        name: never reused.
        folder: with the adapter in PEFT's format, kept while it is loaded; one of all weights is already removed.
    """

    name: str
    folder: str


class CompletionBackend(Protocol):
    """Samples completions with adapters that it has loaded; all processes of a run use the same one."""

    @property
    def model(self) -> str:
        """Name of its base model, for messages."""
        ...

    @property
    def merged_dtype(self) -> torch.dtype | None:
        """Data type of all weights, adapters merged, if it takes these in place of an adapter; None if it does not."""
        ...

    def load(self, write: Callable[[Path], Path | None]) -> ServedAdapter:
        """Load an adapter, or all weights.

        Args:
            write: writes an adapter into a folder, in PEFT's format, or all weights in transformers' format; returns
                the subfolder with the adapter, if it is in one.

        Raises:
            RuntimeError: The backend does not support it.
        """
        ...

    def unload(self, adapter: ServedAdapter) -> None:
        """Remove an adapter; nothing happens if it is gone or was loaded by another process."""
        ...

    def sample_groups(
        self,
        adapter: ServedAdapter,
        prompts: Sequence[tuple[str, Sequence[int]]],
        sizes: Sequence[int],
        sampling: SamplingSettings,
        end_ids: int | Sequence[int],
        *,
        seed: int = 0,
        report: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """Sample groups of completions as `generation.sample_groups` does, with other random numbers.

        Args:
            adapter: of the policy.
            prompts: name and token ids of each prompt.
            sizes: number of completions of each prompt, >= 0.
            sampling: temperature, limits and stop criteria.
            end_ids: all tokens that end a completion, including the model's own (`ChatFormat.end_ids`).
            seed: of the sampling.
            report: called with the number of finished completions, and of all, if the backend knows them meanwhile.

        Raises:
            RuntimeError: The backend fails, or its samples are invalid.
            ValueError: The numbers of prompts and sizes differ, or a prompt and its completion do not fit its context.
        """
        ...

    def rest(self) -> None:
        """Release the memory of this process's device, until the next call: the policy is updated."""
        ...

    def close(self) -> None:
        """Remove all adapters; a later call of `load` starts again."""
        ...


class BackendSettings(Protocol):
    """Settings of a backend."""

    def connect(self) -> CompletionBackend:
        """Make the backend; it starts when it is first used."""
        ...


def check_sizes(prompts: Sequence[object], sizes: Sequence[int]) -> None:
    """Check that each prompt has a size.

    Raises:
        ValueError: The numbers differ.
    """
    if len(prompts) != len(sizes):
        raise ValueError(f"expected one size per prompt, got {len(prompts)} prompts and {len(sizes)} sizes")


def check_context(prompts: Sequence[tuple[str, Sequence[int]]], max_new_tokens: int, context: int | None) -> None:
    """Check that prompts and their completions fit a backend's context, which would cut completions silently.

    Raises:
        ValueError: One does not.
    """
    name, ids = max(prompts, key=lambda prompt: len(prompt[1]), default=("", ()))
    if context is not None and prompts and len(ids) + max_new_tokens > context:
        raise ValueError(
            f"prompt {name!r} has {len(ids)} tokens, and with max_new_tokens={max_new_tokens} needs a context of "
            f"{len(ids) + max_new_tokens}, but vLLM was started with one of {context}: start it with --max-model-len "
            f"{len(ids) + max_new_tokens} or more (max_model_len in process), or lower max_new_tokens"
        )
