"""Few demonstrations and many verifiable prompts: LUFFY and other methods, 20 to 90 seconds per run on one CPU core.

    python benchmarks/luffy_demonstrations.py                                  # all runs; resumes an interrupted one
    python benchmarks/luffy_demonstrations.py --seeds 0 --demonstrations 16    # some of them
    python benchmarks/luffy_demonstrations.py --second-family                  # with another family out of distribution
    python benchmarks/luffy_demonstrations.py --report                         # only the tables and the plot

A model trained from scratch (two layers, width 64) answers sums of letters (`letter_sums.py`). Its base policy knows
the values and short sums, and guesses longer ones. Training has 2,000 prompts of three or four letters, few of them
with a demonstration. All methods see the same prompts for the same number of steps (`luffy_plan.py`), a quarter of each
batch with demonstrations; SFT sees demonstrations only. Held-out sums are in distribution, longer, of letters that no
training prompt has, or in another wording. With `--second-family` the base policy knows a second kind of problems as
well as sums, and none of it is trained: it is a further test, with base policies, folders and figures of its own.

Each run is a `lit-rft fit` of `luffy/arithmetic.yaml` with an overlay of `configs/luffy`; it evaluates at its end.
Finished runs are skipped. Runs are in `runs/luffy_demonstrations`, figures in
`benchmarks/results/luffy_demonstrations.json`, the plot is `docs/images/luffy_demonstrations.png`; those of the second
family have `luffy_families` in place of this name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment import RESULTS, ROOT, curve, environment, lit_rft_arguments, read_results, write_json_lines
from letter_sums import HELD_OUT, SECOND_FAMILY, TESTS, base_rows, first_error, held_out_rows, training_rows
from luffy_plan import DATA, DEMONSTRATIONS, METHODS, OBJECTIVE, STEPS, Run, all_runs, family_runs
from luffy_report import report
from rich.console import Console

from lit_rft import cli
from lit_rft._files import write_json
from lit_rft.records import read_rollouts

RECIPE = "luffy/arithmetic.yaml"
PROMPTS, GROUP, POOL = 16, 8, 2000
BASE_STEPS, BASE_ROWS, HABIT = 400, 10000, 0.02
ADVANTAGES = "model.init_args.advantages.init_args"


@dataclass(frozen=True)
class Experiment:
    """Problems, and the folder of their runs.

    Attributes:
        runs: folder.
        file: of the figures.
        second_family: whether the base policy knows a second family of problems, which is then a test.
    """

    runs: Path
    file: Path
    second_family: bool = False

    @property
    def tests(self) -> tuple[str, ...]:
        return (*TESTS, SECOND_FAMILY) if self.second_family else TESTS

    def folder(self, run: Run) -> Path:
        return self.runs / f"seed{run.seed}" / run.name

    def common_keys(self, folder: Path, seed: int) -> dict[str, Any]:
        """Return the settings of all stages."""
        return {
            "seed_everything": seed,
            "trainer.default_root_dir": folder,
            "trainer.accelerator": "cpu",
            "trainer.precision": "32-true",
            "trainer.enable_progress_bar": False,
            "trainer.limit_val_batches": 1.0,
            "trainer.log_every_n_steps": 5,
            "model.init_args.policy.model": self.runs / f"seed{seed}" / "model",
            "model.init_args.policy.lora": "null",
            "model.init_args.reward": "letter_sums.FinalDigit",
            "model.init_args.verifier": "letter_sums.FinalDigit",
            "model.init_args.sampling.max_new_tokens": 18,
            "model.init_args.answering.sampling.max_new_tokens": 26,
            "model.init_args.answering.max_concurrent": 300,
            "model.init_args.max_concurrent": PROMPTS * GROUP,
            "model.init_args.batching.micro_batch_tokens": 16384,
            "model.init_args.chunk_tokens": 4096,
            f"{DATA}.train_tasks": "null",
            f"{DATA}.eval_tasks": "null",
            f"{DATA}.eval_batch_size": 600,
            f"{DATA}.max_trace_length": 26,
        }

    def training_keys(self, run: Run) -> dict[str, Any]:
        """Return the settings of a training run, after the runs before it."""
        method = METHODS[run.method]
        if method.after is None:
            start = self.base_checkpoint(run.seed)
        else:
            earlier = dataclasses.replace(run, method=method.after)
            self.play(earlier)
            start = self.folder(earlier) / "checkpoints" / "last.ckpt"
        return {
            "trainer.max_steps": method.steps,
            "model.init_args.policy.start_from": start,
            "model.init_args.optimizer.learning_rate": 5e-4,
            "model.init_args.optimizer.warmup_steps": 5,
            f"{OBJECTIVE}.group_size": GROUP,
            f"{OBJECTIVE}.entropy_coef": 0.0,
            f"{ADVANTAGES}.scale_by_std": False,
            f"{ADVANTAGES}.on_policy_statistics": True,
            f"{DATA}.batch_size": PROMPTS,
            f"{DATA}.trace_share": 0.25,
            f"{DATA}.train_files": f"[{self.write_rows(run)}]",
            **dict(method.keys),
        }

    def write_rows(self, run: Run) -> Path:
        """Write the training prompts of a run, and return the file."""
        rows = training_rows(POOL, run.demonstrations, run.seed, run.wrong)
        return write_json_lines(self.runs / f"seed{run.seed}" / f"train-{run.demonstrations}-{run.wrong}.jsonl", rows)

    def base_checkpoint(self, seed: int) -> Path:
        """Train the base policy of a seed if it is missing, and return its checkpoint."""
        folder = self.runs / f"seed{seed}" / "base"
        if not (folder / "row.json").exists():
            from lit_rft.models.scratch import save_scratch_model

            model = self.runs / f"seed{seed}" / "model"
            save_scratch_model(model, ["A"], vocab_size=261, seed=seed)  # a token per character
            file = write_json_lines(folder / "train.jsonl", base_rows(BASE_ROWS, seed, HABIT, self.second_family))
            keys = {
                "trainer.max_steps": BASE_STEPS,
                f"{OBJECTIVE}.sft_steps": BASE_STEPS,
                "model.init_args.optimizer.learning_rate": 3e-3,
                "model.init_args.optimizer.warmup_steps": 20,
                "model.init_args.optimizer.schedule": "cosine",
                f"{DATA}.batch_size": 128,
                f"{DATA}.train_files": f"[{file}]",
            }
            self.fit(folder, seed, keys)
        return folder / "checkpoints" / "last.ckpt"

    def fit(
        self, folder: Path, seed: int, keys: Mapping[str, Any], overlay: str | None = None, split: str = "test"
    ) -> None:
        """Train and validate at the end, continue an interrupted run, or do nothing after a finished one."""
        if (folder / "row.json").exists():
            return
        started = time.time()
        file = write_json_lines(self.runs / f"{split}.jsonl", held_out_rows(HELD_OUT, split, self.second_family))
        keys = {f"{DATA}.eval_files": f"[{file}]", **self.common_keys(folder, seed), **keys}
        keys["trainer.val_check_interval"] = keys["trainer.max_steps"]
        if (folder / "checkpoints" / "last.ckpt").exists():
            keys["ckpt_path"] = "last"
        cli.main(lit_rft_arguments("fit", [RECIPE, *([f"luffy/{overlay}.yaml"] if overlay else [])], keys))
        scores = {test: curve(folder / "tensorboard", f"val/{test}/average")[-1][1] for test in self.tests}
        rewards = curve(folder / "tensorboard", "train/reward")
        figures = {"scores": scores, "seconds": round(time.time() - started), "rewards": rewards}
        write_json(folder / "row.json", figures | {"errors": error_shares(folder)})

    def play(self, run: Run, split: str = "test", more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Train and test, unless it is done; return the figures.

        Args:
            run: the run.
            split: of the held-out problems; trials of settings take `dev`.
            more: further settings, for trials.
        """
        keys = {**self.training_keys(run), **(more or {})}
        self.fit(self.folder(run), run.seed, keys, METHODS[run.method].overlay, split)
        result: dict[str, Any] = json.loads((self.folder(run) / "row.json").read_text())
        return result

    def collect_results(self) -> dict[str, Any]:
        """Return the finished runs, of this machine and of the results so far."""
        known = read_results(self.file)
        runs, bases = dict(known.get("runs", {})), dict(known.get("bases", {}))
        for path in sorted(self.runs.glob("seed*/*/row.json")):
            row, seed = json.loads(path.read_text()), path.parent.parent.name.removeprefix("seed")
            if path.parent.name == "base":
                bases[seed] = row
            else:
                runs.setdefault(path.parent.name, {})[seed] = row
        settings = {"steps": STEPS, "prompts": PROMPTS, "group": GROUP, "pool": POOL, "held_out": HELD_OUT}
        settings["tests"] = list(self.tests)
        return {"runs": runs, "bases": bases, "settings": settings, **environment()}


def error_shares(folder: Path) -> dict[str, dict[str, float]]:
    """Return the share of each first error by test, over the recorded quarter of the held-out answers."""
    counts: dict[str, Counter[str]] = {}
    file = folder / "rollouts" / "validation.jsonl"
    for group in read_rollouts(file) if file.exists() else ():
        _, wording, letters = group.rollouts[0].id.rsplit("-", 2)
        counts.setdefault(group.task, Counter())[first_error(letters, group.rollouts[0].text, int(wording))] += 1
    return {
        test: {kind: round(number / sum(kinds.values()), 3) for kind, number in sorted(kinds.items())}
        for test, kinds in sorted(counts.items())
    }


SUMS = Experiment(ROOT / "runs" / "luffy_demonstrations", RESULTS / "luffy_demonstrations.json")
FAMILIES = Experiment(ROOT / "runs" / "luffy_families", RESULTS / "luffy_families.json", second_family=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--demonstrations", type=int, nargs="+", default=DEMONSTRATIONS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--second-family", action="store_true", help="with another family of problems as a test")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    options = parser.parse_args()
    console, experiment = Console(), FAMILIES if options.second_family else SUMS
    plan = family_runs if options.second_family else all_runs
    for run in plan(options.seeds, options.demonstrations) if not options.report else ():
        known = read_results(experiment.file).get("runs", {})
        if run.method in options.methods and str(run.seed) not in known.get(run.name, {}):
            row = experiment.play(run)
            console.print(f"seed {run.seed}, {run.name}: {row['scores']}, {row['seconds']} seconds")
            write_json(experiment.file, experiment.collect_results())
    report(read_results(experiment.file), console, f"{experiment.file.stem}.png")


if __name__ == "__main__":
    main()
