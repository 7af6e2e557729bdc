"""The documentation as a site: hooks of mkdocs (mkdocs.yml).

Pages from README.md, CONTRIBUTING.md and CHANGELOG.md; a page of the API for each package; links that leave docs/ in
the repository; equations as MathML, which browsers draw without scripts, fonts or a network.
"""

from __future__ import annotations

import html
import importlib
import inspect
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build" / "docs_tree"
# files outside of docs/ that are pages of the site
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/gpu/README.md": "gpu_benchmarks.md",
}
FILES = ("configs/**/*.yaml", "examples/*.py")  # copied, so that links to them work
_LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
_MATH = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
_API_START = "api/index.md"


def on_startup(**_: Any) -> None:
    """Copy the packages as they install: before mkdocstrings looks for its folders, and leaves out missing ones."""
    copy_packages(TREE)


def on_config(config: Any) -> Any:
    """Add the pages of the API to the navigation."""
    for entry in config.nav:
        if "API" in entry:
            names = [f"api/{name}.md" for name in packages()]
            entry["API"] = [_API_START, *({page[4:-3]: page} for page in names)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/, and the files that pages link to."""
    from mkdocs.structure.files import File

    contents = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in PAGES.items()}
    contents[_API_START] = api_overview()
    contents |= {f"api/{name}.md": api_page(name) for name in packages()}
    for pattern in FILES:
        contents |= {
            path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob(pattern))
        }
    for name, content in contents.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at pages of the site."""
    return site_links(markdown, page.file.src_uri)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Write equations as MathML."""
    return with_mathml(content)


def copy_packages(tree: Path) -> None:
    """Copy the packages as they install: datamodules/ and the other top-level folders lie in `lit_rft`."""
    shutil.rmtree(tree, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "static")
    shutil.copytree(ROOT / "lit_rft", tree / "lit_rft", ignore=ignore)
    for name in ("datamodules", "callbacks"):
        shutil.copytree(ROOT / name, tree / "lit_rft" / name, ignore=ignore)


def site_links(markdown: str, page: str) -> str:
    """Rewrite the links of a page that lead to other places on the site than in the repository.

    Args:
        markdown: of the page.
        page: its path on the site, such as `index.md`.
    """
    source = next((path for path, name in PAGES.items() if name == page), f"docs/{page}")

    def rewrite(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if "://" in link[1] or not (ROOT / target).exists():
            return link[0]
        place = PAGES.get(target, target.removeprefix("docs/"))
        return f"]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{link[2] or ''})"

    return _LINK.sub(rewrite, markdown)


def with_mathml(content: str) -> str:
    r"""Replace the equations `\(...\)` and `\[...\]` of a page by MathML.

    Raises:
        ValueError: for an equation that cannot be converted.
    """
    from latex2mathml.converter import convert

    def draw(match: re.Match[str]) -> str:
        text = html.unescape(match[2]).strip()
        formula = text[2:-2].strip()
        try:
            drawn: str = convert(formula, display="block" if text.startswith(r"\[") else "inline")
        except Exception as error:
            raise ValueError(f"expected an equation in LaTeX, got {formula!r}: {error!r}") from error
        return drawn

    return _MATH.sub(draw, content)


def packages() -> list[str]:
    """Return the names of the public packages, without `configs`, which is a folder of files."""
    import lit_rft

    return [name for name in lit_rft._SUBPACKAGES if name != "configs"]


def api_page(package: str) -> str:
    """Return the page of a package: its docstring, then each public name."""
    module = importlib.import_module(f"lit_rft.{package}")
    lines = [f"# lit_rft.{package}", "", inspect.getdoc(module) or "", ""]
    names = getattr(module, "__all__", None)
    if names is None:  # a module: its own definitions
        return "\n".join([*lines, f"::: lit_rft.{package}", "    options: {show_root_heading: false}", ""])
    # fields of named tuples have comments in place of docstrings
    options = ["    options: {show_if_no_docstring: true}"] if package == "objectives" else []
    for name in names:
        lines += [f"::: lit_rft.{package}.{name}", *options, ""]
    return "\n".join(lines)


def api_overview() -> str:
    """Return the table of the names that `lit_rft` exports itself."""
    import lit_rft

    lines = ["# lit_rft", "", inspect.getdoc(lit_rft) or "", "", "| name | package |", "|---|---|"]
    for name, package in sorted(lit_rft._NAMES.items()):
        lines.append(f"| [`{name}`][{package}.{name}] | [{package}]({package.removeprefix('lit_rft.')}.md) |")
    lines += ["", "| package | contents |", "|---|---|"]
    for name in packages():
        summary = (inspect.getdoc(importlib.import_module(f"lit_rft.{name}")) or "").partition("\n")[0]
        lines.append(f"| [lit_rft.{name}]({name}.md) | {summary} |")
    return "\n".join([*lines, ""])
