"""Two processes write a file each, and a resumed run has every batch once, with one process too."""

import shutil
from pathlib import Path

from process_pair import ProcessPair
from rollout_files_in_processes import main

from lit_rft.records import GroupRecord, read_rollouts


def batches(folder: Path, process: int) -> list[int]:
    return sorted({group.batch for group in read_rollouts(folder) if group.process == process})


def members(groups: list[GroupRecord]) -> list[tuple[int, int, int, int]]:
    return sorted((group.batch, group.process, group.group, len(group.rollouts)) for group in groups)


def test_each_process_writes_its_file_and_a_resumed_run_continues_them(
    pair: ProcessPair, tiny_model_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    pair.run("rollout_files_in_processes", [str(tiny_model_folder), str(run), "8"])  # two steps per batch
    files = sorted(path.name for path in (run / "rollouts").iterdir())
    assert files == ["train-rank0.jsonl", "train-rank1.jsonl"]
    assert batches(run, 0) == batches(run, 1) == [0, 1, 2, 3]
    uninterrupted = read_rollouts(run)
    # as after `kill -9` in the fourth batch, of which one process has written its part
    shutil.copytree(run, tmp_path / "killed")
    shutil.rmtree(run)
    run.mkdir()
    pair.run("rollout_files_in_processes", [str(tiny_model_folder), str(run), "4"])
    shutil.copy(tmp_path / "killed" / "rollouts" / "train-rank1.jsonl", run / "rollouts" / "train-rank1.jsonl")
    assert batches(run, 1) == [0, 1, 2, 3]
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    pair.run("rollout_files_in_processes", [str(tiny_model_folder), str(run), "8", "--ckpt_path", checkpoint])
    resumed = read_rollouts(run)
    assert members(resumed) == members(uninterrupted)
    assert [r.text for g in resumed for r in g.rollouts] == [r.text for g in uninterrupted for r in g.rollouts]
    # one process goes on in a file of its own, beside theirs
    main([str(tiny_model_folder), str(run), "10", "--devices", "1", "--ckpt_path", checkpoint])
    assert batches(run, 1) == [0, 1, 2, 3] and batches(run, 0) == [0, 1, 2, 3, 4]
