"""A model that is on the hub only, where there is no hub."""

import urllib.request
from typing import Any

import pytest

from lit_rft.models import backbone, load_tokenizer


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def refuse(request: Any, timeout: float) -> None:
        requests.append(timeout)
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    backbone._hub_answers.cache_clear()
    for _ in range(2):
        with pytest.raises(ValueError, match="the hub is unreachable and the model is not in its local cache"):
            load_tokenizer("nobody/nothing")
    assert len(requests) <= 1  # none where HF_HUB_OFFLINE is set
    backbone._hub_answers.cache_clear()


def test_the_hub_is_not_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Any) -> None:
    monkeypatch.setattr(backbone, "_hub_answers", lambda: pytest.fail("asked the hub for a folder"))
    assert load_tokenizer(str(tiny_model_folder)).pad_token_id is not None
