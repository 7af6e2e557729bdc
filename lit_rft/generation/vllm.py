"""Completions by a vLLM server in sync with the policy: only the adapter is sent.

The server is a separate process, often with its own Python environment and GPU. It must allow loading adapters:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 64 \
        --max-loras 2 --logprobs-mode processed_logprobs

Its log-probabilities differ from those of the trained policy by rounding; `loss.importance_cap` corrects for that. With
vLLM's default `--logprobs-mode` they are those at temperature 1, which cannot be corrected at another temperature: such
a server is rejected. Unlike those of `sample_groups`, they include top-k and top-p.

A server that has ended or hangs costs waiting: requests are sent again, with the same seeds, when it answers again.
"""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_rft.generation.adapter_folders import AdapterFolders
from lit_rft.generation.backends import CompletionBackend, ServedAdapter, check_context, check_sizes
from lit_rft.generation.completions_api import completion_request, prompt_seed, read_completions
from lit_rft.generation.sampling import Completion, SamplingSettings, as_ids
from lit_rft.generation.server_connection import ServerConnection, ServerRefusal
from lit_rft.generation.server_recovery import PatientRequests
from lit_rft.generation.vllm_api import VllmApi


@dataclass
class ServerSettings:
    """A vLLM server that samples completions in place of this process.

    Args:
        url: of the server.
        adapter_dir: folder for adapters that both processes can access; null for a temporary one on this machine.
        timeout: maximum seconds per request.
        patience: maximum seconds to wait for a server that has ended, hangs or fails, > 0. With several processes it
            should be shorter than the time limit of their process group (30 minutes by default).
        parallel_requests: maximum number of prompts at the same time.
    """

    url: str = "http://127.0.0.1:8000"
    adapter_dir: str | None = None
    timeout: float = 1800.0
    patience: float = 600.0
    parallel_requests: int = 64

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"server.url must begin with http:// or https://, got {self.url!r}")
        for name in ("timeout", "patience", "parallel_requests"):
            if not getattr(self, name) > 0:
                raise ValueError(f"server.{name} must be > 0, got {getattr(self, name)}")

    def connect(self) -> CompletionBackend:
        """Make a client; it sends nothing yet."""
        return VllmServer(self)


class VllmServer:
    """A client of vLLM's OpenAI-compatible server, a `CompletionBackend`.

    Loaded adapters are removed from the server by `close`, at the latest when this process ends.

    Args:
        settings: of the server.
    """

    merged_dtype = None  # a server has adapters

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._api = VllmApi(ServerConnection(settings.url, settings.timeout))
        self._patient = PatientRequests(self.url, settings.patience, self._api.answers)
        # which the server may read again while the adapter is loaded
        self._folders = AdapterFolders(settings.adapter_dir)
        self._base: dict[str, Any] | None = None
        self._checked = False
        weakref.finalize(self, _unload_all, self._api, self._folders)

    @property
    def url(self) -> str:
        """Address of the server."""
        return self._api.connection.url

    @property
    def model(self) -> str:
        """The base model that the server has loaded."""
        base = self._base_model()
        return str(base.get("root") or base.get("id"))

    def load(self, write: Callable[[Path], Path | None]) -> ServedAdapter:
        """Load an adapter into the server; see `CompletionBackend`.

        Raises:
            RuntimeError: The server is gone for longer than the time limit, rejects it, or is not set up as needed.
        """
        self._patient.resume()
        adapter = self._folders.write(write)
        self._patient.send(lambda: self._api.load(adapter))
        if not self._checked:
            self._patient.send(lambda: self._check_log_probs(adapter), lambda: self._api.restore(adapter))
        return adapter

    def _check_log_probs(self, adapter: ServedAdapter) -> None:
        """Check that the only allowed token has probability 1, as in the distribution that is sampled from."""
        sampling = SamplingSettings(1, 1.0, top_k=1)
        answer = self._api.complete(completion_request(adapter.name, [0], 1, sampling, [0], 0))
        (completion,) = read_completions(answer, 1, sampling, {0})
        if abs(completion.log_probs[0]) > 1e-3:
            raise RuntimeError(
                f"expected log-probabilities of the sampling distribution from {self.url}, got others: "
                "start the server with --logprobs-mode processed_logprobs"
            )
        self._checked = True

    def unload(self, adapter: ServedAdapter) -> None:
        """Remove an adapter from the server; see `CompletionBackend`."""
        _unload(self._api, self._folders, adapter)

    def rest(self) -> None:
        """Do nothing: a server has memory of its own."""

    def close(self) -> None:
        """Remove all adapters from the server."""
        _unload_all(self._api, self._folders)

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
        """Sample groups of completions with vLLM's random numbers; see `CompletionBackend`.

        Raises:
            RuntimeError: The server is gone for longer than the time limit, rejects a request, or its response is
                invalid.
            ValueError: The numbers of prompts and sizes differ, or a prompt does not fit the server's context.
        """
        check_sizes(prompts, sizes)
        ends = as_ids(end_ids)
        self._patient.resume()
        check_context(prompts, sampling.max_new_tokens, self._context())
        count = _Count(sum(sizes), report)

        def ask(prompt: tuple[str, Sequence[int]], size: int) -> list[Completion]:
            if size == 0:
                return []
            wanted = 1 if sampling.temperature == 0 else size  # vLLM rejects several greedy completions
            request = completion_request(adapter.name, prompt[1], wanted, sampling, ends, prompt_seed(seed, prompt[0]))
            answer = self._patient.send(lambda: self._complete(adapter, request), lambda: self._api.restore(adapter))
            group = read_completions(answer, wanted, sampling, {*ends, *sampling.stop_token_ids}) * (size // wanted)
            count.add(size)
            return group

        with ThreadPoolExecutor(self.settings.parallel_requests) as threads:
            try:
                return list(threads.map(ask, prompts, sizes))
            except BaseException:  # Ctrl-C, too, ends the requests in progress
                self._patient.stop()
                self._api.connection.abort()
                raise

    def _complete(self, adapter: ServedAdapter, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._api.complete(request)
        except ServerRefusal as error:
            if error.status != 404 or adapter.name in self._api.models():
                raise
        self._api.restore(adapter)  # the server has been restarted between two requests
        return self._api.complete(request)

    def _base_model(self) -> dict[str, Any]:
        if self._base is None:
            models = self._patient.send(self._api.models).values()
            self._base = next(model for model in models if not model.get("parent"))
        return self._base

    def _context(self) -> int | None:
        """Return the maximum number of tokens of a prompt and its completion; None if the server does not tell."""
        length = self._base_model().get("max_model_len")
        return None if length is None else int(length)


class _Count:
    """Counts the completions that several threads receive.

    Args:
        total: number of all.
        report: called with the number so far, and of all.
    """

    def __init__(self, total: int, report: Callable[[int, int], None] | None) -> None:
        self._total, self._report, self._done, self._lock = total, report, 0, threading.Lock()

    def add(self, number: int) -> None:
        """Count received completions."""
        with self._lock:
            self._done += number
            if self._report is not None:
                self._report(self._done, self._total)


def _unload_all(api: VllmApi, folders: AdapterFolders) -> None:
    for adapter in folders.adapters:
        _unload(api, folders, adapter)


def _unload(api: VllmApi, folders: AdapterFolders, adapter: ServedAdapter) -> None:
    if folders.remove(adapter):
        api.unload(adapter)
