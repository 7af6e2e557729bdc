"""Docs, configs, docstrings and comments use the standard terms (docs/glossary.md), not the phrases listed here.

Docstrings begin with an imperative or a noun, list `Raises:` as a block, and identifiers are nouns.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
FOLDERS = ("lit_rft", "datamodules", "callbacks", "benchmarks", "tools", "examples")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# phrase (regular expression) -> standard term
PHRASES = {
    r"\breads? everything anew|\bread anew": "recomputes the full prefix",
    r"\bin one piece\b": "fused",
    r"\bfolded into\b": "merged adapters",
    r"\b(split|whole) weights\b": "sharded / unsharded weights",
    r"\bso many tokens\b": "maximum tokens per micro-batch; in chunks of this many tokens",
    r"\bthe plain way\b": "falls back to the default implementation; baseline",
    r"\bone a row\b": "one per row",
    r"\b(tokens|steps|turns|rows|numbers) an? (second|step|row|episode|optimiser step)\b": "per second, per row",
    r"\bseveral transcripts in a row\b": "packed sequences",
    r"\bsays (something else|the same)\b": "outputs differ / match",
    r"\bpolicy as it is\b": "with the current policy",
    r"\bcame to (its|an) end\b": "finished (EOS or stop)",
    r"\bwhat it (earned|brought)\b": "its reward, its return",
    r"\bwho (plays|acts|may know whom)\b": "acting policy, agents, import rules",
    r"\bwhat is to be played\b": "episode specifications",
    r"\bwhat each level is told\b": "prompts for each level",
    r"\bas new as the policy\b": "kept in sync with the policy",
    r"\bstarted from anything\b": "initial weights",
    r"\bwhat it starts from|\bwhere the policy starts\b": "initial weights",
    r"\bwhole or not at all\b": "atomically",
    r"\bis no whole\b|\bno whole (Parquet|checkpoint)": "incomplete or corrupt file",
    r"\bcomes twice\b": "duplicate id",
    r"\bnot announced\b": "unknown (not in the given list)",
    r"\bof no (use|meaning|further use)\b": "has no effect, undefined, unusable",
    r"\ba word about why\b": "with an explanatory message",
    r"\bnothing here lives on a device\b": "no tensors to move",
    r"\bothers each time\b": "cycling through them",
    r"\bin one heap\b": "pooled",
    r"\bso-many-th\b": "every n-th item",
    r"\bwhoever asks\b": "state the fact",
    r"\bone that can be gone\b": "is applicable",
    r"\b(was|is|been) (not )?at hand\b": "was (not) available",
    r"\bas (it|they) (came out|was measured)\b": "results, measurements",
    r"\bmediocre\b": "medium-quality",
    r"\bnothing came of\b": "produced no step",
    r"\bReinforced fine-tuning\b": "Reinforcement fine-tuning",
    r"\bas many operations on next to nothing\b": "dispatch overhead",
    r"\banew\b": "again, from the start",
    r"\bin one.s own\b|\bof one.s own\b|\bof the user.s own\b": "user-defined",
    r"\bin (a|the) (process|thread|folder)(es|s)? of (its|their) own\b": "in its own process, in a separate process",
    r"\bbut for rounding\b": "up to rounding",
    r"\b(come|comes|coming) to (its|their|an) end\b": "finish",
    r"\b(somebody|nobody|whoever)\b": "name the part of the program",
    r"\bwhatever (the|its|their|an?) \w+": "independent of, for any",
    r"\bwithout a word\b|\bin so many words\b|\bin silence\b": "silently, explicitly",
    r"\b(is|are|was|were|be) told\b": "receives, gets",
    r"\bso-and-so-many\b|\bso many (of|for|steps|turns|tests)\b": "this many; maximum number of",
    r"\bone an? (batch|decision|episode|level|process|record|stage|step|transcript)\b": "one per batch, ...",
    r"\b(plays|reads|samples|writes) (beside|side by side)\b": "in parallel",
    r"\bwhat (it|they|one|that) (is|are) (made of|about)\b": "a noun: parts, contents",
    r"\ball the same\b": "nevertheless",
    r"\bat the letter\b|\bto the letter\b": "exactly",
    r"\bwith nothing to spare\b": "leave internal targets out",
}

# Rules for docstrings only, by the same scheme.
DOCSTRINGS = {
    r"\A(what|which|who|whose|where|whether|how|that)\b": "begin with an imperative, or with a noun for classes",
    r"(?<=\n)\x20*\w+:\x20(what|which|who|where|how)\b": "describe an argument with a noun phrase",
    r"(?<=\n)\x20*(?-i:Args|Returns|Raises):\x20(?!see)\S": "a block: the section's name on a line of its own",
}

# Names that do not say what a value is.
VAGUE_NAMES = {"one", "found", "told", "own", "asked", "whole", "some", "said"}


def prose(path: Path) -> list[tuple[int, str]]:
    """Return the text to check, with line numbers: pages and configs in full, sources by docstring and comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return [(1, text)]
    parts = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring is not None:
                parts.append((node.body[0].lineno, docstring))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return parts + [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def vague_names(path: Path) -> list[str]:
    """List the variables, arguments and attributes of a file with a vague name."""
    names = [
        (node.lineno, getattr(node, "id", None) or getattr(node, "arg", None) or getattr(node, "attr", None))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name | ast.arg | ast.Attribute)
    ]
    return [f"{path.relative_to(ROOT)}:{line}: {name!r}" for line, name in names if name in VAGUE_NAMES]


def complaints(path: Path) -> list[str]:
    """List the phrases in a file, each with its place and the term to use."""
    name = path.relative_to(ROOT)
    return [
        f"{name}:{line + text[: match.start()].count(chr(10))}: {match.group()!r}, write: {term}"
        for line, part in prose(path)
        for text in [re.sub(r"[ \t]+", " ", part)]
        for phrase, term in (PHRASES if path.suffix != ".py" or part.startswith("#") else PHRASES | DOCSTRINGS).items()
        for match in re.finditer(phrase.replace(" ", r"\s+"), text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("folder", ["", *FOLDERS])
def test_standard_terms(folder: str) -> None:
    paths = [path for path in SOURCES if path.is_relative_to(ROOT / folder)] if folder else PAGES + CONFIGS
    bad = [line for path in paths for line in complaints(path)]
    assert not bad, "\n".join(bad)


def test_names_say_what_a_value_is() -> None:
    bad = [line for path in SOURCES for line in vague_names(path)]
    assert not bad, "\n".join(bad)


def test_a_phrase_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = tmp_path / "module.py"
    source.write_text('def f():\n    """Layers in one\n    piece."""\n    return "in one piece"  # in one heap\n')
    assert [line.partition(", ")[0] for line in complaints(source)] == [
        "module.py:2: 'in one\\n piece'",
        "module.py:4: 'in one heap'",
    ]


def test_unclear_docstrings_and_names_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = tmp_path / "module.py"
    source.write_text(
        'def f(own):\n    """What f does.\n\n    Args:\n        own: what x.\n    Raises: ValueError.\n    """\n'
        "    self.found = [one for one in own]\n"
    )
    assert [line.partition(", write")[0] for line in complaints(source)] == [
        "module.py:2: 'What'",
        "module.py:5: ' own: what'",
        "module.py:6: ' Raises: V'",
    ]
    assert {line.rpartition(" ")[2] for line in vague_names(source)} == {"'own'", "'found'", "'one'"}
