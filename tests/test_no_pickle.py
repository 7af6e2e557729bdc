"""No file is unpickled, and no data is executed: over all source files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("lit_rft", "datamodules", "callbacks") for path in (ROOT / folder).rglob("*.py"))
# messages of a worker to the run that has started it, over their pipe
WORKER = "lit_rft/envs/worker.py"


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """The calls of a file with the names of their functions, as written."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def is_weights_only(call: ast.Call) -> bool:
    return any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in call.keywords)


def violations(path: Path) -> list[str]:
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    unpickles = ("load", "loads", "Unpickler")
    wrong = []
    for function, call in calls(path):
        module, _, last = function.rpartition(".")
        if function in ("eval", "exec", "__import__") or module in (
            "marshal",
            "shelve",
            "dill",
            "cloudpickle",
            "joblib",
        ):
            wrong.append(f"{name}:{call.lineno}: {function}")
        if module in ("pickle", "_pickle") and last in unpickles and name != WORKER:
            wrong.append(f"{name}:{call.lineno}: {function}")
        if function == "torch.load" and not is_weights_only(call):
            wrong.append(f"{name}:{call.lineno}: {function} without weights_only=True")
        passes_on = any(key.arg == "weights_only" for key in call.keywords)
        if last == "load_checkpoint" and passes_on and not is_weights_only(call):
            wrong.append(f"{name}:{call.lineno}: {function} without weights_only=True")
        if last in ("load", "load_all", "full_load", "unsafe_load") and module == "yaml":
            wrong.append(f"{name}:{call.lineno}: {function}")
        if last == "load" and module in ("np", "numpy"):
            wrong.append(f"{name}:{call.lineno}: {function}")
    return wrong


def test_no_file_is_unpickled_and_no_data_is_executed() -> None:
    assert len(FILES) > 200
    assert [line for path in FILES for line in violations(path)] == []


@pytest.mark.parametrize(
    "line",
    ["pickle.load(f)", "pickle.loads(b)", "pickle.Unpickler(f)", "torch.load(p)", "torch.load(p, weights_only=False)",
     "super().load_checkpoint(p, weights_only=w)", "eval(text)", "exec(text)", "yaml.load(f)", "np.load(p)"],
)  # fmt: skip
def test_a_violation_is_noticed(line: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(f"x = {line}\n")
    assert len(violations(tmp_path / "module.py")) == 1


def test_what_is_allowed_is_not_noticed(tmp_path: Path) -> None:
    lines = ["torch.load(p, weights_only=True)", "model.eval()", "yaml.safe_load(f)", "json.load(f)", "pickle.dumps(x)"]
    (tmp_path / "module.py").write_text("\n".join(lines))
    assert violations(tmp_path / "module.py") == []
