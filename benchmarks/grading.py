"""Grading of a data set's ground truths, given back as answers in three formats.

python benchmarks/grading.py FILE...
"""

from __future__ import annotations

import argparse

from lit_rft.problems import read_problems
from lit_rft.rewards import Verdict, VerifierPool
from lit_rft.rewards.ground_truths import unearnable
from lit_rft.rewards.math import MathReward

FORMS = {
    "in a box": r"So we get \boxed{%s}.",
    "as a sentence": "The answer is %s.",
    "as the last of two boxes": r"First I thought \boxed{-7}. No: \boxed{%s}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files of problems")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    problems = [problem for file in arguments.files for problem in read_problems(file)]
    pool = VerifierPool(arguments.workers)
    golds = [problem.ground_truth for problem in problems]
    for name, form in FORMS.items():
        verdicts = pool.verify(golds, [form.replace("%s", gold) for gold in golds])
        sources: dict[str, list[Verdict]] = {}
        for problem, verdict in zip(problems, verdicts, strict=True):
            sources.setdefault(problem.source, []).append(verdict)
        shares = ", ".join(f"{source} {v.count(Verdict.RIGHT)} of {len(v)}" for source, v in sources.items())
        print(f"{name}: {verdicts.count(Verdict.RIGHT)} of {len(verdicts)} right ({shares})")
        for problem, verdict in zip(problems, verdicts, strict=True):
            if verdict is not Verdict.RIGHT:
                print(f"  {verdict.value}: problem {problem.id}, {problem.ground_truth!r}")
    print(f"killed {pool.killed}, retried {pool.retried}")
    pool.close()
    reward = MathReward(num_workers=arguments.workers)
    for entry in unearnable(problems, reward):
        print(f"  matches no answer: {entry}")
    reward.close()


if __name__ == "__main__":
    main()
