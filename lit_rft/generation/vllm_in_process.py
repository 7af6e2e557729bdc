"""Completions by vLLM's `LLM` class, started by the training process: for one device and without a server.

vLLM must be installed beside this library. Its engine is a child process of the training process, so that threads,
random numbers and process groups of training are untouched; adapters, or all weights, are handed over as files.
"""

import gc
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from lit_rft.generation.adapter_folders import AdapterFolders
from lit_rft.generation.backends import CompletionBackend, ServedAdapter, check_context, check_sizes
from lit_rft.generation.completions_api import checked_completion, prompt_seed, sampling_fields
from lit_rft.generation.sampling import Completion, SamplingSettings, as_ids
from lit_rft.generation.vllm_worker import ReloadExtension
from lit_rft.models.processes import world_size

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_WORKER = f"{ReloadExtension.__module__}.{ReloadExtension.__name__}"


@dataclass
class VllmInProcess:
    """vLLM in a child process of this one.

    Args:
        model: base model, a folder or a Hugging Face id; null for the policy's.
        dtype: of its weights.
        max_model_len: maximum tokens of a prompt and its completion; null for the model's own.
        weights: form of each new version of the policy: its adapter, or all weights with the adapter merged. Merged
            weights are also for policies without adapters (policy.lora: null) and for one policy at a time; they are
            much faster on a CPU, where vLLM is slow with adapters.
        max_lora_rank: maximum rank of adapters: 8, 16, 32, 64, 128, 256, 320 or 512.
        gpu_memory: share of a GPU's memory, in (0, 1].
        sleep: release the GPU's memory between rollouts; has no effect on a CPU, where vLLM cannot sleep.
        options: further arguments of `vllm.LLM`.
    """

    model: str | None = None
    dtype: str = "bfloat16"
    max_model_len: int | None = None
    weights: Literal["adapter", "merged"] = "adapter"
    max_lora_rank: int = 64
    gpu_memory: float = 0.4
    sleep: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory <= 1:
            raise ValueError(f"server.gpu_memory must be in (0, 1], got {self.gpu_memory}")
        if self.weights not in ("adapter", "merged"):
            raise ValueError(f"server.weights must be adapter or merged, got {self.weights!r}")
        if self.weights == "merged" and self.dtype not in _DTYPES:
            raise ValueError(f"server.dtype must be one of {', '.join(_DTYPES)} for merged weights, got {self.dtype!r}")

    def connect(self) -> CompletionBackend:
        """Make the backend; vLLM starts when it is first loaded."""
        return VllmEngine(self)


class VllmEngine:
    """vLLM's `LLM` class as a `CompletionBackend`.

    Args:
        settings: of the engine.
        start: makes the `LLM` from its arguments; the default imports vLLM.
    """

    def __init__(self, settings: VllmInProcess, start: Callable[..., Any] | None = None) -> None:
        self.settings = settings
        self._start = start or _start_vllm
        self._llm: Any = None
        self._folders = AdapterFolders()
        self._requests: dict[ServedAdapter, Any] = {}  # None for all weights
        self._number = 0  # of the last adapter; never used again
        self._asleep = False
        self._model = settings.model

    @property
    def model(self) -> str:
        """Name of the base model."""
        return str(self._model)

    @property
    def merged_dtype(self) -> torch.dtype | None:
        """See `CompletionBackend`."""
        return _DTYPES[self.settings.dtype] if self.settings.weights == "merged" else None

    def load(self, write: Callable[[Path], Path | None]) -> ServedAdapter:
        """Load an adapter, or all weights; see `CompletionBackend`.

        Raises:
            RuntimeError: vLLM is not installed, does not start or rejects the weights, there are several processes, or
                the weights of another policy are loaded.
        """
        if world_size() > 1:
            raise RuntimeError("vLLM in process is for one process (trainer.devices: 1): use a vLLM server for several")
        if self.merged_dtype is not None and self._requests:
            raise RuntimeError(
                "vLLM in process has room for one policy with server.weights: merged, but several adapters sample: set "
                "server.weights: adapter"
            )
        adapter = self._folders.write(write)
        if self.merged_dtype is None:
            self._load_adapter(adapter)
        else:
            self._load_weights(adapter)
        return adapter

    def _load_adapter(self, adapter: ServedAdapter) -> None:
        config = json.loads((Path(adapter.folder) / "adapter_config.json").read_text(encoding="utf-8"))
        if config["r"] > self.settings.max_lora_rank:
            raise RuntimeError(
                f"the adapter has rank {config['r']}: set server.max_lora_rank to it or more, got "
                f"{self.settings.max_lora_rank}"
            )
        self._model = self._model or config["base_model_name_or_path"]
        self._awake()
        self._number += 1
        request = self._make_request(adapter.name, self._number, adapter.folder)
        self._call(self._llm.llm_engine.add_lora, request)
        self._requests[adapter] = request

    def _load_weights(self, weights: ServedAdapter) -> None:
        try:
            config = json.loads((Path(weights.folder) / "config.json").read_text(encoding="utf-8"))
            self._model = self._model or config["_name_or_path"]
            self._awake()
            self._call(self._llm.collective_rpc, "reload_policy", args=(weights.folder,))
        finally:
            self._folders.remove(weights)  # vLLM has read it
        if not self._call(self._llm.reset_prefix_cache):  # keys and values of the previous weights
            raise RuntimeError("vLLM in process did not empty its prefix cache: its samples would mix two policies")
        self._requests[weights] = None

    def _make_request(self, name: str, number: int, folder: str) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(name, number, folder)

    def _awake(self) -> None:
        """Start the engine, or wake it up."""
        if self._llm is None:
            self._llm = self._call(
                self._start,
                model=self.model,
                dtype=self.settings.dtype,
                max_model_len=self.settings.max_model_len,
                gpu_memory_utilization=self.settings.gpu_memory,
                logprobs_mode="processed_logprobs",
                enable_sleep_mode=self._sleeps,
                **self._weight_options,
                **self.settings.options,
            )
        elif self._asleep:
            self._call(self._llm.wake_up)
            self._asleep = False

    @property
    def _weight_options(self) -> dict[str, Any]:
        if self.merged_dtype is not None:
            return {"worker_extension_cls": _WORKER}
        return {"enable_lora": True, "max_lora_rank": self.settings.max_lora_rank, "max_loras": 2}

    @property
    def _sleeps(self) -> bool:
        return self.settings.sleep and torch.cuda.is_available()

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function of vLLM.

        Raises:
            RuntimeError: It fails.
        """
        try:
            return function(*args, **options)
        except ImportError as error:
            raise RuntimeError(
                f"vLLM cannot be imported ({error}): install lit-rft and vLLM in one environment (docs/algorithms.md), "
                "or use a vLLM server"
            ) from error
        except Exception as error:  # of many kinds; vLLM logs what happened in its own processes
            raise RuntimeError(f"vLLM in process failed: {type(error).__name__}: {error}; its log is above") from error

    def unload(self, adapter: ServedAdapter) -> None:
        """Remove an adapter, or make room for other weights; see `CompletionBackend`."""
        request = self._requests.pop(adapter, None)
        self._folders.remove(adapter)
        if request is not None and self._llm is not None:
            self._call(self._llm.llm_engine.remove_lora, request.lora_int_id)

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

        `report` is not called: vLLM returns all completions at once.

        Raises:
            RuntimeError: vLLM fails, or its samples are invalid.
            ValueError: The numbers of prompts and sizes differ, or a prompt does not fit the context.
        """
        check_sizes(prompts, sizes)
        ends = as_ids(end_ids)
        if adapter not in self._requests:
            raise RuntimeError(f"expected a loaded adapter, got {adapter.name}")
        self._awake()
        check_context(prompts, sampling.max_new_tokens, self._llm.llm_engine.model_config.max_model_len)
        greedy = sampling.temperature == 0  # vLLM rejects several greedy completions
        counts = [min(size, 1) if greedy else size for size in sizes]
        wanted = [index for index, size in enumerate(counts) if size]
        if not wanted:
            return [[] for _ in sizes]
        outputs = self._call(
            self._llm.generate,
            [{"prompt_token_ids": list(prompts[i][1])} for i in wanted],
            [_parameters(sampling, counts[i], ends, prompt_seed(seed, prompts[i][0])) for i in wanted],
            lora_request=self._requests[adapter],
            use_tqdm=False,
        )
        groups: list[list[Completion]] = [[] for _ in sizes]
        for index, output in zip(wanted, outputs, strict=True):
            group = _completions(output, sampling, {*ends, *sampling.stop_token_ids})
            groups[index] = group * (sizes[index] if greedy else 1)
        return groups

    def rest(self) -> None:
        """Release the GPU's memory until the next call."""
        if self._llm is not None and self._sleeps and not self._asleep:
            self._call(self._llm.sleep, level=1)
            self._asleep = True

    def close(self) -> None:
        """End the engine; a later call of `load` starts it again."""
        for adapter in self._folders.adapters:
            self._folders.remove(adapter)
        self._requests.clear()
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._asleep = None, False
        gc.collect()


def _start_vllm(**options: Any) -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # else vLLM reports each start to its authors
    from vllm import LLM

    return LLM(**options)


def _parameters(sampling: SamplingSettings, size: int, end_ids: Sequence[int], seed: int) -> Any:
    from vllm import SamplingParams

    # log-probabilities of the sampled tokens alone
    return SamplingParams(**sampling_fields(sampling, size, end_ids, seed), logprobs=0)


def _completions(output: Any, sampling: SamplingSettings, ends: set[int]) -> list[Completion]:
    completions = []
    for choice in sorted(output.outputs, key=lambda choice: choice.index):
        ids = list(choice.token_ids)
        log_probs = [row[token].logprob for token, row in zip(ids, choice.logprobs or [], strict=True)]
        completions.append(checked_completion(ids, log_probs, choice.finish_reason, sampling, ends))
    return completions
