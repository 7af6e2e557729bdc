"""The client against a real vLLM server, where one is at hand:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 64 \\
        --logprobs-mode processed_logprobs
    LIT_RFT_VLLM_URL=http://127.0.0.1:8000 LIT_RFT_VLLM_MODEL=MODEL pytest tests/generation/test_vllm_server.py
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lit_rft.generation import SamplingSettings, ServerSettings, VllmServer
from lit_rft.models import LoraSettings, load_backbone, load_tokenizer
from lit_rft.testing.tiny import let_adapters_act

URL, MODEL = os.environ.get("LIT_RFT_VLLM_URL"), os.environ.get("LIT_RFT_VLLM_MODEL")
pytestmark = pytest.mark.skipif(not (URL and MODEL), reason="no server: see the top of this file")


@pytest.fixture(scope="module")
def model() -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = load_backbone(str(MODEL), dtype=torch.bfloat16, lora=LoraSettings(8, 16, 0.0, "all-linear"))
    torch.manual_seed(0)
    let_adapters_act(model, 0.02)
    return model.eval().to(device)


@pytest.fixture
def server() -> Iterator[VllmServer]:
    server = VllmServer(ServerSettings(str(URL)))
    yield server
    server.close()


@torch.no_grad()
def test_what_it_samples_has_the_adapters_probabilities(model: Any, server: VllmServer) -> None:
    tokenizer = load_tokenizer(str(MODEL))
    ids, end = tokenizer("The capital of France is")["input_ids"], tokenizer.eos_token_id
    name = server.load(model.save_pretrained)
    (group,) = server.sample_groups(name, [("a", ids)], [8], SamplingSettings(32, 0.7), end)
    off, without = [], []
    for one in group:
        whole, said = torch.tensor([[*ids, *one.ids]], device=model.device), torch.tensor(one.ids, device=model.device)
        for adapters, found in ((contextlib.nullcontext(), off), (model.disable_adapter(), without)):
            with torch.autocast(model.device.type, torch.bfloat16), adapters:
                logits = model(input_ids=whole).logits
            log_probs = (logits[0, len(ids) - 1 : -1].float() / 0.7).log_softmax(-1)
            chosen = log_probs.gather(-1, said[:, None])[:, 0]
            found.append((chosen.cpu() - torch.tensor(one.log_probs)).abs())
    assert torch.cat(off).mean() < 0.05 < torch.cat(without).mean()


def test_stop_strings_and_one_adapter_after_the_other(model: Any, server: VllmServer) -> None:
    tokenizer = load_tokenizer(str(MODEL))
    ids, end = tokenizer("Count: 1, 2, 3,")["input_ids"], tokenizer.eos_token_id
    for _ in range(2):
        name = server.load(model.save_pretrained)
        sampling = SamplingSettings(24, 0.0, stop_strings=(",",))
        ((one,),) = server.sample_groups(name, [("a", ids)], [1], sampling, end)
        assert one.finished == ("," in tokenizer.decode(one.ids)) or one.ids[-1] == end
        server.unload(name)
