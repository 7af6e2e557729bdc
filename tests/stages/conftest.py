"""Data on disk for tests of the stages."""

import json
from pathlib import Path

import pytest

from lit_rft.episodes import write_episodes
from lit_rft.testing.tiny import make_episode


@pytest.fixture
def files(tmp_path: Path) -> str:
    rows = [
        {"id": f"p{i}", "prompt": f"What is {i}+1?", "ground_truth": str(i + 1), "traces": [f"It is {i + 1}."],
         "source": "amc" if i % 3 else "math"}
        for i in range(6)
    ]  # fmt: skip
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("stored") / "stored.jsonl"
    write_episodes(path, [make_episode(seed, 4) for seed in range(3)])
    return str(path)
