"""Figures of tests with a real vLLM, for docs/performance.md: printed, and appended to the file LIT_RFT_FIGURES."""

import json
import os


def record(name: str, **figures: float) -> None:
    line = json.dumps({"name": name, **figures})
    print(line)
    if path := os.environ.get("LIT_RFT_FIGURES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
