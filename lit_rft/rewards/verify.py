"""Math-Verify, asked in the one way that works inside a killable process."""

import logging

from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off: ours are outside


def verify_answer(gold: str, answer: str) -> bool | None:
    """Whether an answer means the same as the ground truth; None if no answer was found in the text.

    Math-Verify's own time limits are signals of the main thread, which would end nothing here: they are off, and the
    process is killed from outside.
    """
    expected = parse(_marked(gold), parsing_timeout=None)
    found = parse(answer, parsing_timeout=None)
    if not expected:
        raise ValueError(f"the ground truth {gold!r} cannot be read as an answer")
    if not found:
        return None
    return bool(verify(expected, found, timeout_seconds=None))


def _marked(gold: str) -> str:
    """Math-Verify looks for LaTeX between dollars; ground truths come with and without them."""
    gold = gold.strip()
    return gold if "$" in gold or "\\boxed" in gold else f"${gold}$"
