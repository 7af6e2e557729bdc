"""Training and evaluation mode."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off temporarily; the mode comes back after an error, too."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
