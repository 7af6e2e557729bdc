"""Fixtures that more than one folder of tests uses."""

from pathlib import Path

import pytest
import torch
from tiny import make_model, make_tokenizer

# Tiny tensors gain nothing from a second thread, and lose a lot when the cores are busy.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, as a folder that `from_pretrained` loads."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = make_tokenizer()
    make_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
