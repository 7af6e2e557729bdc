"""A small stand-in for a vLLM server: the endpoints that the client uses, over HTTP, with a real model behind them."""

from __future__ import annotations

import contextlib
import copy
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from lit_rft.generation import SamplingSettings, sample_groups
from lit_rft.generation.model_check import probe_prompt
from lit_rft.models import LoraSettings
from lit_rft.models.backbone import add_lora
from lit_rft.testing.tiny import let_adapters_act, make_model

END = 2
PROMPTS = [("a", [5, 6, 7]), ("b", [8, 9, 10, 11, 12]), ("c", [13])]
BASE = "the-base-model"
GONE = 0  # a fault: no response


def adapted(seed: int = 0, rank: int = 4) -> Any:
    """Make the tiny model with an adapter that has an effect."""
    torch.manual_seed(seed)
    model = add_lora(make_model(), LoraSettings(rank, 8, 0.0, "all-linear"))
    let_adapters_act(model, 0.5)
    return model.eval()


class FakeVllm:
    """What the server knows, and what it was asked.

    Args:
        model: the base model, of which each adapter gets a copy.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.adapters: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.change: Any = lambda answer: answer  # of the completions, for wrong ones
        self.processed = True  # --logprobs-mode processed_logprobs
        self.rank = 64  # --max-lora-rank
        self.context: int | None = None  # --max-model-len
        self.fault: Callable[[str, dict[str, Any]], int | None] = lambda path, content: None
        self.decode = lambda ids: "".join(f"<{token}>" for token in ids)
        self._lock = threading.Lock()

    def look(self, path: str) -> tuple[int, Any]:
        if (code := self.fault(path, {})) is not None:
            return code, {"error": "a fault"}
        if path == "/health":
            return 200, ""
        base = {"id": BASE, "root": BASE, "parent": None, "max_model_len": self.context}
        return 200, {"data": [base, *({"id": name, "parent": BASE} for name in list(self.adapters))]}

    def answer(self, path: str, content: dict[str, Any]) -> tuple[int, Any]:
        if (code := self.fault(path, content)) is not None:
            return code, {"error": "a fault"}
        if content.get("model") == BASE:
            return 200, {"choices": []}
        with self._lock:
            self.requests.append((path, content))
            if path == "/v1/load_lora_adapter":
                return self.load_adapter(content["lora_name"], content["lora_path"])
            if path == "/v1/unload_lora_adapter":
                found = self.adapters.pop(content["lora_name"], None)
                return (200, "Success") if found is not None else (404, {"error": "no such adapter"})
            if content["model"] not in self.adapters:
                return 404, {"error": f"The model `{content['model']}` does not exist."}
            if content["temperature"] == 0 and content["n"] > 1:
                return 400, {"error": "n must be 1 when using greedy sampling"}
            answer = self._complete(**content)
            checks = content["max_tokens"] == 1 or content["prompt"] == probe_prompt(self.model)
            return 200, answer if checks else self.change(answer)

    def load_adapter(self, name: str, folder: str) -> tuple[int, Any]:
        if name in self.adapters:
            return 400, {"error": f"The lora adapter '{name}' has already been loaded."}
        if not Path(folder, "adapter_config.json").is_file():
            return 404, {"error": f"Loading lora {name} failed: No adapter found for {folder}"}
        rank = json.loads((Path(folder) / "adapter_config.json").read_text())["r"]
        if rank > self.rank:
            return 500, {"error": f"LoRA rank {rank} is greater than max_lora_rank {self.rank}."}
        self.adapters[name] = PeftModel.from_pretrained(copy.deepcopy(self.model), folder).eval()
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _complete(self, model: str, prompt: list[int], n: int, max_tokens: int, seed: int = 0, **options: Any) -> Any:
        end, *others = options["stop_token_ids"]
        sampling = SamplingSettings(
            max_tokens, options["temperature"], max(0, options["top_k"]), options["top_p"], tuple(others),
            tuple(options["stop"]),
        )  # fmt: skip
        torch.manual_seed(seed)
        (group,) = sample_groups(
            self.adapters[model], [("", prompt)], [n], sampling, end, seed=seed, decode=self.decode
        )
        alone = self.processed and options["top_k"] == 1  # the probability is that after top-k
        choices = [
            {
                "index": index,
                "token_ids": one.ids,
                "logprobs": {"token_logprobs": [0.0] * len(one.ids) if alone else one.log_probs},
                "finish_reason": "stop" if one.finished else "length",
            }
            for index, one in enumerate(group)
        ]
        return {"choices": choices[::-1]}  # in whatever order


@contextlib.contextmanager
def serving(fake: FakeVllm, port: int = 0) -> Iterator[str]:
    """The server on a port of this machine, by default a free one; gives its url."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.respond(*fake.answer(self.path, content))

        def do_GET(self) -> None:
            self.respond(*fake.look(self.path))

        def respond(self, code: int, answer: Any) -> None:
            if code == GONE:  # the connection ends without an answer
                return
            body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def folders(fake: FakeVllm) -> list[Path]:
    return [Path(content["lora_path"]) for path, content in fake.requests if path == "/v1/load_lora_adapter"]
