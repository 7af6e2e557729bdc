"""A real vLLM server in a process group of its own, which can be killed, stopped and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

START_LIMIT = 600.0  # seconds; half a minute on two quiet cores
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
UPDATES = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
NEEDED = ("--enable-lora", "--max-lora-rank", "64", "--max-loras", "2", "--logprobs-mode", "processed_logprobs")


class RealServer:
    """The server, on a free port of this machine.

    Args:
        model: folder of the model.
        folder: of its log.
        context: maximum tokens of a prompt and its completion.
        flags: those that lit-rft needs, or others.
        updates: whether adapters may be loaded while it runs.
    """

    def __init__(
        self, model: str, folder: Path, *, context: int, flags: tuple[str, ...] = NEEDED, updates: bool = True
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "server.log"
        self._command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--dtype", "bfloat16",
            "--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(context), *flags,
        ]  # fmt: skip
        self._environment = ENVIRONMENT | (UPDATES if updates else {})
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> RealServer:
        self.start()
        try:
            self.wait()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, in a process group of its own, without waiting for it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, **self._environment},
            )  # fmt: skip

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            RuntimeError: It ends, or takes too long; with the end of its log.
        """
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError), opener.open(self.url + "/health", timeout=10):
                return
            time.sleep(1)
        raise RuntimeError(f"the server does not answer:\n{self.log.read_text(errors='replace')[-3000:]}")

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the server."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End all processes of the server at once, as running out of memory does."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
