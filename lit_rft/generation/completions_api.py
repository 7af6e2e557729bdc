"""Requests and responses of an OpenAI-compatible `/v1/completions`, with token ids in place of texts."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from lit_rft.generation.sampling import Completion, SamplingSettings


def completion_request(
    model: str, ids: Sequence[int], size: int, sampling: SamplingSettings, end_ids: Sequence[int], seed: int
) -> dict[str, Any]:
    """Return the body of a request for several completions of a prompt.

    Args:
        model: the server's name of the model or adapter.
        ids: of the prompt.
        size: number of completions.
        sampling: temperature, limits and stop criteria.
        end_ids: all tokens that end a completion; only these do.
        seed: of the prompt.
    """
    return {
        "model": model,
        "prompt": list(ids),
        **sampling_fields(sampling, size, end_ids, seed),
        # override the model's generation_config.json
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 1,
        "return_token_ids": True,
    }


def sampling_fields(sampling: SamplingSettings, size: int, end_ids: Sequence[int], seed: int) -> dict[str, Any]:
    """Return the settings of sampling by vLLM's names; see `completion_request`."""
    return {
        "n": size,
        "seed": seed,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop_strings),
        "stop_token_ids": [*end_ids, *sampling.stop_token_ids],
        "ignore_eos": True,  # only the end tokens named above count
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }


def prompt_seed(seed: int, name: str) -> int:
    """Return the seed of a prompt; within a group vLLM increments it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little") >> 1


def read_completions(
    answer: Mapping[str, Any], size: int, sampling: SamplingSettings, ends: set[int]
) -> list[Completion]:
    """Check a response and return its completions.

    Raises:
        RuntimeError: It is invalid.
    """
    choices = sorted(answer.get("choices", []), key=lambda choice: choice["index"])
    if len(choices) != size:
        raise RuntimeError(f"expected {size} completions from the server, got {len(choices)}")
    completions = []
    for choice in choices:
        ids, log_probs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None:
            raise RuntimeError("expected token_ids from the server, got none: use vLLM 0.10.2 or later")
        completions.append(checked_completion(ids, log_probs, choice["finish_reason"], sampling, ends))
    return completions


def checked_completion(
    ids: Sequence[int],
    log_probs: Sequence[float] | None,
    reason: str | None,
    sampling: SamplingSettings,
    ends: set[int],
) -> Completion:
    """Check one completion by vLLM, and return it.

    Args:
        ids: of its tokens.
        log_probs: of the tokens.
        reason: of its end: `stop` or `length`.
        sampling: that was requested.
        ends: all tokens that end a completion.

    Raises:
        RuntimeError: It is invalid.
    """
    if log_probs is None or len(log_probs) != len(ids) or not ids:
        raise RuntimeError(f"expected a log-probability for each of {len(ids)} tokens, got {log_probs}")
    stopped = reason == "stop"
    if stopped and not sampling.stop_strings and ids[-1] not in ends:
        raise RuntimeError(f"expected a completion to end with a token of {sorted(ends)}, got {ids[-1]}")
    finished = stopped or ids[-1] in ends  # some versions report `length` for an end in the last position
    if not finished and len(ids) != sampling.max_new_tokens:
        raise RuntimeError(
            f"expected up to {sampling.max_new_tokens} tokens, got a completion cut after {len(ids)} "
            f"({reason}): is the server's --max-model-len too short?"
        )
    return Completion([int(i) for i in ids], [float(p) for p in log_probs], finished)
