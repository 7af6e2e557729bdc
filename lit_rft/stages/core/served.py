"""Settings that do not go together with a generation server."""

from typing import Any

from lit_rft.generation import SamplingSettings, ServerSettings


def check_served(server: ServerSettings | None, sampling: SamplingSettings, loss: Any) -> None:
    """Check that a loss can correct for the rounding of a generation server.

    Raises:
        ValueError: For importance weights that would be wrong.
    """
    corrects = server is not None and getattr(loss, "importance_cap", None) is not None
    if corrects and (sampling.top_k or sampling.top_p < 1):
        raise ValueError(
            "loss.importance_cap needs the probabilities before top-k and top-p, which a server does not tell: leave "
            f"out one of them, got top_k={sampling.top_k} and top_p={sampling.top_p}"
        )
