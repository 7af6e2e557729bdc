"""Fixtures that more than one folder of tests uses."""

from pathlib import Path

import pytest
import torch

from lit_rft.testing import save_tiny_model

# Tiny tensors gain nothing from a second thread, and lose a lot when the cores are busy.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, as a folder that `from_pretrained` loads."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))
