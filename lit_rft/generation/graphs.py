"""Decoding steps as CUDA graphs: one launch in place of a thousand small ones, which cost more than the work itself."""

import logging
import os
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

SWITCH = "LIT_RFT_CUDA_GRAPHS"  # in the environment: 0 turns graphs off
_FEWEST = 8  # rows; fewer cost as much
_EAGER_STEPS = 4  # of a shape before it is captured, which costs about as much as these
_refused: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()  # models whose steps could not be captured
_TOLERANCE = 1e-2  # between the logits of a graph's first replay and those of the same step without it

Compute = Callable[[Tensor, Tensor], Tensor]  # token ids [R, 1] and positions [R, 1] -> logits [R, V]


def can_capture(model: nn.Module) -> bool:
    """Whether steps of a model may be captured: all of its weights lie on a CUDA device, whole, the switch is not
    off, and no step of it has been refused before."""
    weights = list(model.parameters())
    whole = all(type(weight.data) is Tensor and weight.device.type == "cuda" for weight in weights)
    return os.environ.get(SWITCH, "1") != "0" and bool(weights) and whole and model not in _refused


def rows_of_graph(rows: int, num_slots: int) -> int:
    """Rows of the graph that serves so many: a power of two, at least 8 and at most `num_slots`."""
    return min(max(_FEWEST, 1 << (rows - 1).bit_length()), num_slots)


class StaticStep:
    """One decoding step of a fixed shape, whose inputs and outputs stay where they are.

    Args:
        rows: of the step, padding included.
        device: of the inputs.
        capture: replay a captured graph; otherwise the step is computed each time.
        pool: memory that graphs share; they never run at the same time.
    """

    def __init__(self, rows: int, device: torch.device, *, capture: bool, pool: Any = None) -> None:
        self._capture, self._pool = capture, pool
        with torch.inference_mode(False):  # whoever asks: such tensors could not be written again outside it
            self._inputs = torch.zeros(2, rows, 1, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    def __call__(self, compute: Compute, tokens: Sequence[int], positions: Sequence[int], wanted: int) -> Tensor:
        """Logits [wanted, V] of the first rows; the caller's to keep.

        Args:
            compute: always the same; running it twice is running it once.
            tokens, positions: one of each row, padding included.
        Raises: RuntimeError where the step cannot be captured, or the outputs of its graph differ.
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
        """Capture the step, after a run on another stream, in which libraries set themselves up."""
        cached, stream = torch.is_autocast_cache_enabled(), torch.cuda.current_stream()
        torch.set_autocast_cache_enabled(False)  # cast weights that are freed afterwards must not be a graph's inputs
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            aside.wait_stream(stream)
            with torch.cuda.stream(aside):
                expected = compute(*self._inputs)[:wanted].clone()
            stream.wait_stream(aside)
            # other threads may go on using the device
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = compute(*self._inputs)
        finally:
            torch.cuda.set_stream(stream)  # a failed capture leaves its own behind
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
        fill: the token in padding.
        capture: see `StaticStep`.
        eager_steps: so many steps of a shape are left to the caller before it gets a static one.
    """

    def __init__(self, model: nn.Module, fill: int, *, capture: bool = True, eager_steps: int = _EAGER_STEPS) -> None:
        self._model, self._fill, self._capture, self._eager_steps = model, fill, capture, eager_steps
        self._device = next(model.parameters()).device
        self._steps: dict[int, StaticStep] = {}
        self._seen: Counter[int] = Counter()  # steps of so many rows
        self._state: Any = None
        self._pool: Any = None
        self._off = False

    def keep_only_for(self, state: Any) -> None:
        """Forget all steps unless the memory that they read and write is where it was.

        Args:
            state: says where it is; compared with that of the time before.
        """
        if state == self._state:
            return
        self._state = state
        self._steps.clear()
        self._seen.clear()
        # one whose graphs are gone must not be used again
        self._pool = torch.cuda.graph_pool_handle() if self._capture else None

    def step(self, compute: Compute, tokens: Sequence[int], positions: Sequence[int]) -> Tensor | None:
        """Logits [B, V] after one token of each of the first rows; None where the caller has to make the step itself.

        Args:
            compute: always the same, see `StaticStep`.
            tokens: [B], of the first rows.
            positions: [R], of all `rows_of_graph` rows: where each one's next token belongs.
        """
        rows, wanted = len(positions), len(tokens)
        self._seen[rows] += 1
        if self._off or self._seen[rows] <= self._eager_steps:
            return None
        try:
            if rows not in self._steps:
                self._steps[rows] = StaticStep(rows, self._device, capture=self._capture, pool=self._pool)
            return self._steps[rows](compute, [*tokens, *[self._fill] * (rows - wanted)], positions, wanted)
        except RuntimeError as error:  # a captured step is never needed: without one it is only slower
            if not self._capture:
                raise
            logger.warning("decoding goes on without CUDA graphs: a step could not be captured: %s", error)
            self._steps.clear()
            self._off = True
            _refused.add(self._model)
            return None
