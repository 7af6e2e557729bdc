"""Completions by a vLLM server, which follows the policy: only its adapter travels.

The server is a process, and often a Python environment and a GPU, of its own. It must allow adapters to come and go:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 64 \
        --max-loras 2 --logprobs-mode processed_logprobs

Its log-probabilities differ from those of the policy in training by rounding; `loss.importance_cap` corrects for
that. With vLLM's default `--logprobs-mode` they would be those at temperature 1, and no correction would be right at
another one: such a server is refused. Those of top-k and top-p are taken after them, unlike `sample_groups`'.
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

# requests do not go through a proxy that the environment names: a server is near, and is told paths
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_UNLOAD_TIMEOUT = 10.0  # seconds


@dataclass
class ServerSettings:
    """A vLLM server that makes completions in place of this process.

    Args:
        url: of the server.
        adapter_dir: where adapters are written for it, which both see; null for a temporary one of this machine.
        timeout: seconds until an answer must have come.
        parallel_requests: prompts at the same time.
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

    What it has given the server is taken back when it is closed, or at the latest when this process ends.

    Args:
        settings: where it is.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._url = settings.url.rstrip("/")
        # name -> folder, from which the server may read again while it has the adapter
        self._folders: dict[str, tempfile.TemporaryDirectory[str]] = {}
        self._checked = False
        weakref.finalize(self, _unload_all, self._url, self._folders)

    def load(self, write: Callable[[Path], Path | None]) -> str:
        """Give the server an adapter.

        Args:
            write: writes it into a folder, in PEFT's format; returns the folder within, where it is in one.
        Returns: its name, which is used only once: the server keeps what it has read by the name.
        Raises: RuntimeError if the server cannot be reached, refuses it, or tells other log-probabilities.
        """
        if self.settings.adapter_dir is not None:
            Path(self.settings.adapter_dir).mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="lit-rft-", dir=self.settings.adapter_dir)
        path, name = Path(folder.name).absolute(), f"lit-rft-{uuid.uuid4().hex}"
        path.chmod(0o755)  # the server may be another user's
        within = write(path) or path
        self._folders[name] = folder
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(within)})
        if not self._checked:
            self._check_log_probs(name)
        return name

    def _check_log_probs(self, adapter: str) -> None:
        """Of one token that alone may be said the probability is 1, if it is that of what was sampled from."""
        sampling = SamplingSettings(1, 1.0, top_k=1)
        answer = self._post("/v1/completions", self._request(adapter, [0], 1, sampling, [0]))
        (one,) = _samples(answer, 1, sampling, {0})
        if abs(one.log_probs[0]) > 1e-3:
            raise RuntimeError(
                f"expected log-probabilities of what the server at {self._url} samples from, got others: start it with "
                "--logprobs-mode processed_logprobs"
            )
        self._checked = True

    def unload(self, name: str) -> None:
        """Take an adapter from the server, if that is still there: nothing is lost if not. Nothing happens if another
        process has given it."""
        if name in self._folders:
            _unload(self._url, name, self._folders.pop(name))

    def close(self) -> None:
        """Take all adapters from the server."""
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
        """As `rollout.sample_groups`, but with vLLM's random numbers: the same seed gives other samples there.

        Args:
            end_ids: all tokens that end a completion, the model's own included (`ChatFormat.end_ids`): the server is
                told to end at these only.
        Raises: RuntimeError if the server cannot be reached, refuses, or gives something else than was asked for;
            ValueError if there are not as many sizes as prompts.
        """
        if len(prompts) != len(sizes):
            raise ValueError(f"expected {len(prompts)} sizes, got {len(sizes)}")
        ends = as_ids(end_ids)

        def ask(prompt: tuple[str, Sequence[int]], size: int) -> list[Completion]:
            if size == 0:
                return []
            wanted = 1 if sampling.temperature == 0 else size  # vLLM refuses to say the most likely one more than once
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
            "ignore_eos": True,  # the end tokens are those named above, whatever the server reads
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            # what a model's generation_config.json would change behind our back
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 1,
            "return_token_ids": True,
        }

    def _post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        text = _post(self._url + path, content, self.settings.timeout)
        # loading is answered in words
        found = json.loads(text) if path == "/v1/completions" else {}
        return dict(found)


def _post(url: str, content: Mapping[str, Any], timeout: float) -> str:
    """Raises: RuntimeError with what the server says."""
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=timeout) as response:
            found: str = response.read().decode()
            return found
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[:2000]
        raise RuntimeError(f"the server refused {url} ({error.code}): {said}") from error
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(
            f"no answer from {url} ({error}): is `vllm serve` running there, with --enable-lora and "
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
        logger.warning("the adapter %s stays with the server: %s", name, error)


def _seed(seed: int, name: str) -> int:
    """Of one prompt; vLLM counts on from it within a group."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little") >> 1


def _samples(answer: Mapping[str, Any], size: int, sampling: SamplingSettings, ends: set[int]) -> list[Completion]:
    """A server's answer, checked: what is trained on must be what was sampled."""
    choices = sorted(answer.get("choices", []), key=lambda choice: choice["index"])
    if len(choices) != size:
        raise RuntimeError(f"asked the server for {size} completions, got {len(choices)}")
    found = []
    for choice in choices:
        ids, log_probs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None:
            raise RuntimeError("the server gives no token_ids: vLLM 0.10.2 or later does")
        if log_probs is None or len(log_probs) != len(ids) or not ids:
            raise RuntimeError(f"expected a log-probability for each of {len(ids)} tokens, got {log_probs}")
        stopped = choice["finish_reason"] == "stop"
        if stopped and not sampling.stop_strings and ids[-1] not in ends:
            raise RuntimeError(f"a completion has ended with token {ids[-1]}, expected one of {sorted(ends)}")
        finished = stopped or ids[-1] in ends  # an end in the last place is `length` to some versions
        if not finished and len(ids) != sampling.max_new_tokens:
            raise RuntimeError(
                f"a completion was cut after {len(ids)} tokens, not {sampling.max_new_tokens} "
                f"({choice['finish_reason']}): is the server's --max-model-len too short?"
            )
        found.append(Completion([int(i) for i in ids], [float(p) for p in log_probs], finished))
    return found
