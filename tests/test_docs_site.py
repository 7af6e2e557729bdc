"""The documentation's site: links, anchors, navigation; `make docs` builds it strictly."""

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
sys.path.insert(0, str(ROOT / "tools"))
import docs_site  # noqa: E402


def test_links_that_leave_docs_lead_to_pages_of_the_site() -> None:
    def links(text: str, page: str) -> list[str]:
        return re.findall(r"\]\((.*?)\)", docs_site.site_links(text, page))

    readme = "[a](docs/runs.md#signals) [b](CONTRIBUTING.md) [c](https://x.y/z) ![d](docs/images/games.png) [e](#more)"
    assert links(readme, "index.md") == [
        "runs.md#signals", "contributing.md", "https://x.y/z", "images/games.png", "#more"
    ]  # fmt: skip
    assert links("[a](../benchmarks/gpu/README.md) [b](runs.md)", "performance.md") == ["gpu_benchmarks.md", "runs.md"]
    howto = "[a](../../README.md#more) [b](../../examples/own_loss.py) [c](loss.md) [d](../runs.md)"
    assert links(howto, "howto/index.md") == ["../index.md#more", "../examples/own_loss.py", "loss.md", "../runs.md"]
    assert links("`x[0](y)` [a](nowhere.md)", "runs.md") == ["y", "nowhere.md"]  # no such files


def test_equations_are_mathml() -> None:
    pytest.importorskip("latex2mathml")
    page = '<p>a <span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[\\frac{1}{Z}\\]</div>'
    drawn = docs_site.with_mathml(page)
    assert drawn.count("<math") == 2 and "arithmatex" not in drawn
    assert 'display="inline"' in drawn and 'display="block"' in drawn and "<mfrac>" in drawn and "&#x0003C;" in drawn


def test_every_page_is_in_the_navigation() -> None:
    nav = re.findall(r"[\w/]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES]
    assert sorted(nav) == sorted([*written, *docs_site.PAGES.values()])


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_anchors_exist(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)", path.read_text()):
        if "://" in target or (not target and not anchor):
            continue
        file = (path.parent / target) if target else path
        assert file.exists(), f"{path.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text()), f"{path.name}: {target}#{anchor}"


def test_names_in_the_pages_are_on_pages_of_the_api() -> None:
    import lit_rft

    for path in PAGES:
        for name in re.findall(r"\]\[(lit_rft\.[\w.]+)\]", path.read_text()):
            _, package, attribute = name.split(".")
            assert attribute in getattr(lit_rft, package).__all__, f"{path.name}: {name}"


def test_a_page_of_the_api_has_every_public_name() -> None:
    import lit_rft

    page = docs_site.api_page("stages")
    assert page.startswith("# lit_rft.stages\n")
    assert re.findall(r"^::: lit_rft\.stages\.(\w+)$", page, re.MULTILINE) == lit_rft.stages.__all__
    assert "[`GRPO`][lit_rft.stages.GRPO]" in docs_site.api_overview()
