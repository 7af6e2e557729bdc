"""Two hosts, as network namespaces with a cable between them: one is killed, or the cable is cut, and both resume."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from faults import pairs, runs
from faults.trial import Tally, Trial, expect

NAMES = ("faults_a", "faults_b")
_ADDRESSES = ("10.99.0.1", "10.99.0.2")
_LIMIT = 90.0  # seconds within which the other host ends
_STRATEGIES = {
    "ddp": '{"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"timeout": "0:00:20"}}',
    "fsdp": "",
}


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield undisturbed runs, killed hosts and a cut cable; none in the short form, which starts few processes."""
    if short:
        return
    yield Trial("hosts", "ddp, undisturbed", functools.partial(undisturbed, shared), 600)
    for strategy in _STRATEGIES:
        for host in (0, 1):
            run = functools.partial(harmed, shared, strategy, host, "killed", f"{seed}/{host}")
            yield Trial("hosts", f"{strategy}, host {host} killed", run, 900)
    run = functools.partial(harmed, shared, "ddp", 1, "cut", f"{seed}/cut")
    yield Trial("hosts", "ddp, cable cut", run, 900)


def _ip(*arguments: str, check: bool = True) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check).stdout


class TwoHosts:
    """Two network namespaces with a cable between them.

    Raises:
        CalledProcessError: this user may not make them.
    """

    def __enter__(self) -> TwoHosts:
        self.__exit__()
        for name in NAMES:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "cable_a", "netns", NAMES[0], "type", "veth", "peer", "name", "cable_b", "netns", NAMES[1])
        for name, cable, address in zip(NAMES, ("cable_a", "cable_b"), _ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            _ip("-n", name, "link", "set", cable, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in range(2):
            self.kill(host)
        for name in NAMES:
            _ip("netns", "del", name, check=False)

    def kill(self, host: int) -> None:
        """Kill every process of a host."""
        for pid in _ip("netns", "pids", NAMES[host], check=False).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue

    def cut(self) -> None:
        """Cut the cable: neither host gets another packet."""
        _ip("-n", NAMES[1], "link", "set", "cable_b", "down")

    def mend(self) -> None:
        """Join the cable."""
        _ip("-n", NAMES[1], "link", "set", "cable_b", "up")

    def start(self, arguments: Sequence[str], folder: Path, name: str) -> list[subprocess.Popen[bytes]]:
        """Run a command by torchrun on both hosts."""
        processes = []
        for host in range(2):
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                        "--node-rank", str(host), "--master-addr", _ADDRESSES[0], "--master-port", "29517",
                        "--module", "lit_rft.cli"]  # fmt: skip
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": ("cable_a", "cable_b")[host]}
            log = (folder / f"{name}_host{host}.log").open("wb")
            command = ["ip", "netns", "exec", NAMES[host], *torchrun, *arguments]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return processes


def command(shared: Path, strategy: str, run: Path) -> list[str]:
    """Return the command of a run on two hosts."""
    how = ["-c", "fsdp.yaml"] if strategy == "fsdp" else ["--trainer.strategy", _STRATEGIES[strategy]]
    two = [*how, "--trainer.num_nodes", "2", "--trainer.devices", "1", "--ckpt_path", "last"]  # not the file's devices
    return runs.command("sft", runs.prepare(shared / "inputs"), run, *two)


def _finish(processes: list[subprocess.Popen[bytes]], folder: Path, name: str) -> None:
    codes = [process.wait(240) for process in processes]
    expect(codes == [0, 0], f"exit codes {codes}: {(folder / f'{name}_host0.log').read_text()[-800:]}")


def reference(shared: Path, strategy: str) -> Path:
    """Return the folder of an undisturbed run on two hosts."""

    def train(partial: Path) -> None:
        with TwoHosts() as hosts:
            _finish(hosts.start(command(shared, strategy, partial), partial, "whole"), partial, "whole")

    return runs.made_once(shared / "references" / f"hosts_{strategy}", train)


def undisturbed(shared: Path, folder: Path) -> Tally:
    """Two hosts compute what two processes of one do, to the bit."""
    runs.expect_same(reference(shared, "ddp"), pairs.reference("sft", shared))
    return Tally(note=f"to the bit, {runs.duration(reference(shared, 'ddp')):.0f} s")


def harmed(shared: Path, strategy: str, host: int, harm: str, seed: str, folder: Path) -> Tally:
    """Kill a host, or cut the cable, after the first checkpoint; the other host ends, and both resume to the bit."""
    expected, arguments = reference(shared, strategy), command(shared, strategy, folder / "run")
    with TwoHosts() as hosts:
        processes = hosts.start(arguments, folder, "first")
        end = time.monotonic() + 200
        while runs.step_of(folder / "run") < 2 and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(random.Random(seed).uniform(0, 0.3))
        reached, begun = runs.step_of(folder / "run"), time.monotonic()
        others = processes if harm == "cut" else [processes[1 - host]]
        if harm == "cut":
            hosts.cut()
        else:
            hosts.kill(host)
        try:
            codes = [process.wait(_LIMIT) for process in others]
        except subprocess.TimeoutExpired:
            codes = []
        seconds = time.monotonic() - begun
        expect(codes and 0 not in codes, f"the other host ended with {codes} after {seconds:.0f} s")
        for each in range(2):
            hosts.kill(each)
        hosts.mend()
        _finish(hosts.start(arguments, folder, "last"), folder, "last")
    runs.expect_same(folder / "run", expected)
    return Tally(note=f"{harm} after step {reached}; the other ended after {seconds:.0f} s with {codes[0]}")
