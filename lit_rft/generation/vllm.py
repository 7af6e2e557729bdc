"""Completions by a vLLM server in sync with the policy: only the adapter is sent.

The server is a separate process, often with its own Python environment and GPU. It must allow loading adapters:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 64 \
        --max-loras 2 --logprobs-mode processed_logprobs

Its log-probabilities differ from those of the trained policy by rounding; `loss.importance_cap` corrects for that. With
vLLM's default `--logprobs-mode` they are those at temperature 1, which cannot be corrected at another temperature: such
a server is rejected. Unlike those of `sample_groups`, they include top-k and top-p.
"""

import hashlib
import http.client
import json
import logging
import tempfile
import urllib.error
import urllib.request
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rft.generation.sampling import Completion, SamplingSettings, as_ids

logger = logging.getLogger(__name__)

# no proxy from the environment: the server is local and receives paths
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_UNLOAD_TIMEOUT = 10.0  # seconds


@dataclass
class ServerSettings:
    """A vLLM server that samples completions in place of this process.

    Args:
        url: of the server.
        adapter_dir: folder for adapters that both processes can access; null for a temporary one on this machine.
        timeout: maximum seconds per request.
        parallel_requests: maximum number of prompts at the same time.
    """

    url: str = "http://127.0.0.1:8000"
    adapter_dir: str | None = None
    timeout: float = 1800.0
    parallel_requests: int = 64

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"server.url must begin with http:// or https://, got {self.url!r}")
        for name in ("timeout", "parallel_requests"):
            if not getattr(self, name) > 0:
                raise ValueError(f"server.{name} must be > 0, got {getattr(self, name)}")


class VllmServer:
    """A client of vLLM's OpenAI-compatible server.

    Loaded adapters are removed from the server by `close`, at the latest when this process ends.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._url = settings.url.rstrip("/")
        # name -> folder, which the server may read again while the adapter is loaded
        self._folders: dict[str, tempfile.TemporaryDirectory[str]] = {}
        self._checked = False
        weakref.finalize(self, _unload_all, self._url, self._folders)

    def load(self, write: Callable[[Path], Path | None]) -> str:
        """Load an adapter into the server.

        Args:
            write: writes it into a folder, in PEFT's format; returns the subfolder with the adapter, if it is in one.

        Returns:
            Its name, never reused: the server caches adapters by name.

        Raises:
            RuntimeError: The server is unreachable, rejects it, or returns other log-probabilities.
        """
        if self.settings.adapter_dir is not None:
            Path(self.settings.adapter_dir).mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="lit-rft-", dir=self.settings.adapter_dir)
        path, name = Path(folder.name).absolute(), f"lit-rft-{uuid.uuid4().hex}"
        path.chmod(0o755)  # the server may run as another user
        within = write(path) or path
        self._folders[name] = folder
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(within)})
        if not self._checked:
            self._check_log_probs(name)
        return name

    def _check_log_probs(self, adapter: str) -> None:
        """Check that the only allowed token has probability 1, as in the distribution that is sampled from."""
        sampling = SamplingSettings(1, 1.0, top_k=1)
        answer = self._post("/v1/completions", self._request(adapter, [0], 1, sampling, [0]))
        (completion,) = _samples(answer, 1, sampling, {0})
        if abs(completion.log_probs[0]) > 1e-3:
            raise RuntimeError(
                f"expected log-probabilities of the sampling distribution from {self._url}, got others: start the "
                "server with --logprobs-mode processed_logprobs"
            )
        self._checked = True

    def unload(self, name: str) -> None:
        """Remove an adapter from the server; nothing happens if it is gone or was loaded by another process."""
        if name in self._folders:
            _unload(self._url, name, self._folders.pop(name))

    def close(self) -> None:
        """Remove all adapters from the server."""
        _unload_all(self._url, self._folders)

    def sample_groups(
        self,
        adapter: str,
        prompts: Sequence[tuple[str, Sequence[int]]],
        sizes: Sequence[int],
        sampling: SamplingSettings,
        end_ids: int | Sequence[int],
        *,
        seed: int = 0,
    ) -> list[list[Completion]]:
        """Sample groups of completions as `generation.sample_groups` does, with vLLM's random numbers.

        Args:
            adapter: its name on the server.
            prompts: name and token ids of each prompt.
            sizes: number of completions of each prompt, >= 0.
            sampling: temperature, limits and stop criteria.
            end_ids: all tokens that end a completion, including the model's own (`ChatFormat.end_ids`): the server ends
                completions at these only.
            seed: of the sampling; gives other samples than in this process.

        Raises:
            RuntimeError: The server is unreachable, rejects the request, or returns an invalid response.
            ValueError: The numbers of prompts and sizes differ.
        """
        if len(prompts) != len(sizes):
            raise ValueError(f"expected one size per prompt, got {len(prompts)} prompts and {len(sizes)} sizes")
        ends = as_ids(end_ids)

        def ask(prompt: tuple[str, Sequence[int]], size: int) -> list[Completion]:
            if size == 0:
                return []
            wanted = 1 if sampling.temperature == 0 else size  # vLLM rejects several greedy completions
            request = self._request(adapter, list(prompt[1]), wanted, sampling, ends)
            answer = self._post("/v1/completions", request | {"seed": _seed(seed, prompt[0])})
            return _samples(answer, wanted, sampling, {*ends, *sampling.stop_token_ids}) * (size // wanted)

        with ThreadPoolExecutor(self.settings.parallel_requests) as threads:
            return list(threads.map(ask, prompts, sizes))

    @staticmethod
    def _request(
        adapter: str, ids: list[int], size: int, sampling: SamplingSettings, end_ids: Sequence[int]
    ) -> dict[str, Any]:
        return {
            "model": adapter,
            "prompt": ids,
            "n": size,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "stop": list(sampling.stop_strings),
            "stop_token_ids": [*end_ids, *sampling.stop_token_ids],
            "ignore_eos": True,  # only the end tokens named above count
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            # override the model's generation_config.json
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 1,
            "return_token_ids": True,
        }

    def _post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        text = _post(self._url + path, content, self.settings.timeout)
        # the response to loading is plain text
        parsed = json.loads(text) if path == "/v1/completions" else {}
        return dict(parsed)


def _post(url: str, content: Mapping[str, Any], timeout: float) -> str:
    """Send a request.

    Raises:
        RuntimeError: The server is unreachable or rejects it; the message has the server's response.
    """
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=timeout) as response:
            text: str = response.read().decode()
            return text
    except urllib.error.HTTPError as error:
        reason = error.read().decode(errors="replace")[:2000]
        raise RuntimeError(f"the server rejected {url} ({error.code}): {reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(
            f"no response from {url} ({error}): is `vllm serve` running there, with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True?"
        ) from error


def _unload_all(url: str, folders: dict[str, tempfile.TemporaryDirectory[str]]) -> None:
    while folders:
        _unload(url, *folders.popitem())


def _unload(url: str, name: str, folder: tempfile.TemporaryDirectory[str]) -> None:
    try:
        with folder:
            _post(url + "/v1/unload_lora_adapter", {"lora_name": name}, _UNLOAD_TIMEOUT)
    except RuntimeError as error:
        logger.warning("cannot remove the adapter %s from the server: %s", name, error)


def _seed(seed: int, name: str) -> int:
    """Return the seed of a prompt; within a group vLLM increments it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little") >> 1


def _samples(answer: Mapping[str, Any], size: int, sampling: SamplingSettings, ends: set[int]) -> list[Completion]:
    """Check a server's response and return its completions."""
    choices = sorted(answer.get("choices", []), key=lambda choice: choice["index"])
    if len(choices) != size:
        raise RuntimeError(f"expected {size} completions from the server, got {len(choices)}")
    completions = []
    for choice in choices:
        ids, log_probs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None:
            raise RuntimeError("expected token_ids from the server, got none: use vLLM 0.10.2 or later")
        if log_probs is None or len(log_probs) != len(ids) or not ids:
            raise RuntimeError(f"expected a log-probability for each of {len(ids)} tokens, got {log_probs}")
        stopped = choice["finish_reason"] == "stop"
        if stopped and not sampling.stop_strings and ids[-1] not in ends:
            raise RuntimeError(f"expected a completion to end with a token of {sorted(ends)}, got {ids[-1]}")
        finished = stopped or ids[-1] in ends  # some versions report `length` for an end in the last position
        if not finished and len(ids) != sampling.max_new_tokens:
            raise RuntimeError(
                f"expected up to {sampling.max_new_tokens} tokens, got a completion cut after {len(ids)} "
                f"({choice['finish_reason']}): is the server's --max-model-len too short?"
            )
        completions.append(Completion([int(i) for i in ids], [float(p) for p in log_probs], finished))
    return completions
