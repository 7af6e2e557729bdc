"""Real servers that are set up in another way than training needs: refused at the first upload, with what to change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from real_vllm import RealServer

from lit_rft.generation import ServerSettings, VllmServer
from lit_rft.generation.model_check import PROBE, check_model, probe_prompt

CONTEXT = 256
RANK = 8  # of the policy's adapter


def load(url: str, policy: Any, adapter: str = "default") -> None:
    """Upload an adapter of the policy, as at the start of a run."""

    def write(folder: Path) -> Path:
        policy.save_pretrained(folder, selected_adapters=[adapter], save_embedding_layers=False)
        return folder if adapter == "default" else folder / adapter

    client = VllmServer(ServerSettings(url, patience=10.0))
    try:
        client.load(write)
    finally:
        client.close()


def test_a_server_without_adapters_is_refused(policy: Any, model_folder: str, tmp_path: Path) -> None:
    refusal = pytest.raises(RuntimeError, match=r"does not load adapters at run time: start it with .*--enable-lora")
    with RealServer(model_folder, tmp_path, context=CONTEXT, flags=(), updates=False) as server, refusal:
        load(server.url, policy)


def test_a_server_with_a_lower_rank_or_other_log_probabilities_is_refused(
    policy: Any, model_folder: str, tmp_path: Path
) -> None:
    policy.add_adapter("wide", replace(policy.peft_config["default"], r=2 * RANK))
    flags = ("--enable-lora", "--max-lora-rank", str(RANK))
    try:
        with RealServer(model_folder, tmp_path, context=CONTEXT, flags=flags) as server:
            with pytest.raises(RuntimeError, match=f"--max-lora-rank {2 * RANK} or more, or lower policy.lora.rank"):
                load(server.url, policy, "wide")
            with pytest.raises(RuntimeError, match="start the server with --logprobs-mode processed_logprobs"):
                load(server.url, policy)
    finally:
        policy.delete_adapter("wide")


@torch.no_grad()
def test_a_server_of_another_model_is_refused(server_url: str, policy: Any, tokenizer: Any) -> None:
    client = VllmServer(ServerSettings(server_url))
    adapter = client.load(
        lambda folder: policy.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    )
    ((completion,),) = client.sample_groups(adapter, [("", probe_prompt(policy))], [1], PROBE, tokenizer.eos_token_id)
    check_model(policy, "default", completion, client.model)
    head = policy.get_output_embeddings().weight
    kept = head.clone()
    try:
        head.copy_(head.roll(1, 0))  # the weights of other tokens
        with pytest.raises(ValueError, match="vLLM has another model than the policy"):
            check_model(policy, "default", completion, client.model)
    finally:
        head.copy_(kept)
        client.close()
