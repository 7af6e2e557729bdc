"""Two processes that stay: they form one process group and run one command after another in it.

A start costs seconds of imports, which a server that forks them has made once, and comparisons of one process with two
need dozens of runs. Lightning takes the processes for those of torchrun: it starts none of its own and finds the
process group that is there.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

SECONDS = 240
GRACE_SECONDS = 20


class ProcessPair:
    """Runs `MODULE.main(arguments)` in both processes.

    Args:
        folder: of the file by which the processes find each other.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_starts = 0
        self._workers: list[tuple[BaseProcess, Connection]] = []

    def __enter__(self) -> ProcessPair:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, module: str, arguments: Sequence[str]) -> None:
        """Run a command to its end in both processes.

        Raises:
            RuntimeError: At least one failed; the message contains the tracebacks of all that ended by themselves.
        """
        if not self._workers:
            self._start()
        for _, connection in self._workers:
            connection.send((module, list(arguments)))
        errors, seconds = [], SECONDS
        waiting = [connection for _, connection in self._workers]
        while waiting and (ready := wait(waiting, seconds)):
            for connection in ready:
                assert isinstance(connection, Connection)
                waiting.remove(connection)
                try:
                    error = connection.recv()
                except EOFError:
                    error = "the process ended"
                if error is not None:
                    errors.append(error)
                    seconds = GRACE_SECONDS  # the other one may wait for this one
        if waiting or errors:
            self._stop()  # their next collective operations would not match
            raise RuntimeError("\n".join([*errors, *["the process did not end"] * len(waiting)]))

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lit_rft.stages", "lit_rft.datamodules", "lit_rft.callbacks", "lightning"])
        meeting = self._folder / f"process_group_{self._num_starts}"
        self._num_starts += 1
        for rank in range(2):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, f"file://{meeting}", there), daemon=True)
            process.start()
            there.close()
            self._workers.append((process, here))

    def _stop(self) -> None:
        for process, connection in self._workers:
            connection.close()
            process.kill()
            process.join()
        self._workers = []


def _end_with_parent() -> None:
    """End this process when the tests' process is gone: it may wait for the other one in a collective operation."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _serve(rank: int, meeting: str, connection: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= {"OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ["TORCHELASTIC_RUN_ID"] = "tests"  # by this Lightning knows processes that it has not started

    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    while True:
        try:
            module, arguments = connection.recv()
        except EOFError:
            return
        try:
            importlib.import_module(module).main(arguments)
            error = None
        except BaseException:  # the command line ends with SystemExit
            error = traceback.format_exc()
        connection.send(error)
