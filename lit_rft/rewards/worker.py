"""One process that compares answers; started by `VerifierPool`, and killed by it.

Imports nothing of ours that is heavy: a killed worker must be back in a moment.
"""

import resource
import sys
from multiprocessing.connection import Connection


def main(connection: Connection, memory_limit: int) -> None:
    """Answer (gold, answer) pairs with True, False, or None for what could not be read, until the pipe closes."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    sys.setrecursionlimit(2000)  # deep nesting is an error, not a crash of the interpreter
    from lit_rft.rewards.verify import verify_answer

    connection.send("ready")
    while True:
        try:
            gold, answer = connection.recv()
        except EOFError:
            return
        try:
            verdict = verify_answer(gold, answer)
        except (Exception, MemoryError, RecursionError):  # whatever a parser makes of it, it is no right answer
            verdict = None
        connection.send(verdict)
