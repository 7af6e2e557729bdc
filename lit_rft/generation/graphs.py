"""Decoding steps as CUDA graphs: one launch in place of about a thousand, which cost more than the work itself."""

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_rft.models.accel import is_on

logger = logging.getLogger(__name__)

_MIN_ROWS = 8  # smaller graphs cost as much
_EAGER_STEPS = 4  # steps of a shape before its capture, which costs about as much
_refused: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()  # models whose steps could not be captured
_TOLERANCE = 1e-2  # between the logits of a graph's first replay and those of the same step without it

Compute = Callable[[Tensor, Tensor], Tensor]  # token ids [R, 1] and positions [R, 1] -> logits [R, V]


def can_capture(model: nn.Module) -> bool:
    """Return whether decoding steps of a model may be captured.

    Requires all of its weights unsharded on a CUDA device, `cuda_graphs` among its fast paths, and no failed capture
    before.
    """
    weights = list(model.parameters())
    unsharded = all(type(weight.data) is Tensor and weight.device.type == "cuda" for weight in weights)
    return is_on(model, "cuda_graphs") and bool(weights) and unsharded and model not in _refused


def rows_of_graph(rows: int, num_slots: int) -> int:
    """Return the rows of the graph for this many rows: a power of two, at least 8 and at most `num_slots`."""
    return min(max(_MIN_ROWS, 1 << (rows - 1).bit_length()), num_slots)


class StaticStep:
    """One decoding step of a fixed shape, with inputs and outputs at fixed addresses.

    Args:
        rows: of the step, padding included.
        device: of the inputs.
        capture: replay a captured graph; otherwise the step is computed each time.
        pool: memory that graphs share; they never run at the same time.
    """

    def __init__(self, rows: int, device: torch.device, *, capture: bool, pool: Any = None) -> None:
        self._capture, self._pool = capture, pool
        with torch.inference_mode(False):  # inference tensors could not be written outside inference mode
            self._inputs = torch.zeros(2, rows, 1, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    def __call__(self, compute: Compute, tokens: Sequence[int], positions: Sequence[int], wanted: int) -> Tensor:
        """Return the logits of the first rows, [wanted, V], as a copy.

        Args:
            compute: the step, the same in every call and idempotent: it runs twice before a capture.
            tokens: one per row, padding included, [R].
            positions: of these tokens, [R].
            wanted: rows before the padding, <= R.

        Raises:
            RuntimeError: the step cannot be captured, or the outputs of its graph differ from the eager ones.
        """
        self._inputs.copy_(torch.tensor([tokens, positions])[:, :, None])
        if not self._capture:
            return compute(*self._inputs)[:wanted].clone()
        if self._graph is None:
            self._record(compute, wanted)
        assert self._graph is not None and self._logits is not None
        self._graph.replay()
        return self._logits[:wanted].clone()  # the next replay overwrites them

    def _record(self, compute: Compute, wanted: int) -> None:
        """Capture the step, after a run on another stream, in which libraries initialise themselves."""
        cached, stream = torch.is_autocast_cache_enabled(), torch.cuda.current_stream()
        torch.set_autocast_cache_enabled(False)  # cast weights are freed afterwards and must not be inputs of a graph
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            aside.wait_stream(stream)
            with torch.cuda.stream(aside):
                expected = compute(*self._inputs)[:wanted].clone()
            stream.wait_stream(aside)
            # other threads may use the device in the meantime
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = compute(*self._inputs)
        finally:
            torch.cuda.set_stream(stream)  # a failed capture leaves its own stream current
            torch.cuda.synchronize()
            torch.set_autocast_cache_enabled(cached)
        graph.replay()
        errors = (logits[:wanted] - expected).norm(dim=-1) / expected.norm(dim=-1)
        if not bool((errors <= _TOLERANCE).all()):
            raise RuntimeError(f"its logits differ by up to {float(errors.max()):.2g} of their norm")
        self._graph, self._logits = graph, logits


class StepGraphs:
    """The static steps of one decoder, by their number of rows.

    Args:
        model: of the decoder.
        fill: token of padding.
        capture: see `StaticStep`.
        eager_steps: steps of each shape computed by the caller before its capture.
    """

    def __init__(self, model: nn.Module, fill: int, *, capture: bool = True, eager_steps: int = _EAGER_STEPS) -> None:
        self._model, self._fill, self._capture, self._eager_steps = model, fill, capture, eager_steps
        self._device = next(model.parameters()).device
        self._steps: dict[int, StaticStep] = {}
        self._seen: Counter[int] = Counter()  # number of rows -> steps so far
        self._state: Any = None
        self._pool: Any = None
        self._off = False

    def keep_only_for(self, state: Any) -> None:
        """Forget all steps unless their memory has not moved.

        Args:
            state: identifies the memory that the steps read and write; compared with that of the previous call.
        """
        if state == self._state:
            return
        self._state = state
        self._steps.clear()
        self._seen.clear()
        # a pool must not be reused after its graphs are freed
        self._pool = torch.cuda.graph_pool_handle() if self._capture else None

    def step(self, compute: Compute, tokens: Sequence[int], positions: Sequence[int]) -> Tensor | None:
        """Return the logits after one more token in each of the first rows, [B, V].

        Args:
            compute: see `StaticStep`.
            tokens: of the first rows, [B].
            positions: of the next token in all `rows_of_graph` rows, [R].

        Returns:
            The logits; None if the caller must compute the step.
        """
        rows, wanted = len(positions), len(tokens)
        self._seen[rows] += 1
        if self._off or self._seen[rows] <= self._eager_steps:
            return None
        try:
            if rows not in self._steps:
                self._steps[rows] = StaticStep(rows, self._device, capture=self._capture, pool=self._pool)
            return self._steps[rows](compute, [*tokens, *[self._fill] * (rows - wanted)], positions, wanted)
        except RuntimeError as error:  # capturing is an optimisation: decoding works without it
            if not self._capture:
                raise
            logger.warning("decoding continues without CUDA graphs: a step could not be captured: %s", error)
            self._steps.clear()
            self._off = True
            _refused.add(self._model)
            return None
