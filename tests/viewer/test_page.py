"""The page of some runs: what is in it, and that nothing in it is code but the page's own."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from command import main
from made_runs import HOSTILE, make_run

import lit_rft.viewer
from lit_rft.viewer import make_page, read_run
from lit_rft.viewer.curves import read_curves
from lit_rft.viewer.run import differing_settings, run_names

STATIC = Path(lit_rft.viewer.__file__).parent / "static"


class Scripts(HTMLParser):
    """Collects the script elements of a page, the policy, and everything that could load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.links: list[str] = []
        self.policy = ""
        self._attributes: dict[str, str | None] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.links += [str(attributes[name]) for name in ("src", "href") if name in attributes]
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(attributes["content"])
        if tag == "script":
            self._attributes = attributes

    def handle_data(self, data: str) -> None:
        if self._attributes is not None:
            self.scripts.append((self._attributes, data))

    def handle_endtag(self, tag: str) -> None:
        self._attributes = None


def blocks(page: str) -> dict[str, Any]:
    data = [(str(attributes["id"]), text) for attributes, text in Scripts(page).scripts if "id" in attributes]
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in data}


def test_the_page_holds_curves_rollouts_and_settings(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "luffy", steps=6))
    data = blocks(make_page([run]))
    index = data["index"]
    assert index["runs"][0]["curves"]["train/loss"][0] == list(range(1, 7))
    assert "learning_rate" in index["runs"][0]["config"] and index["runs"][0]["environment"]["python"] == "3.11.7"
    assert len(index["rollouts"]["group"]) == 6 * (2 * 4 + 3) and index["left_out"] == 0
    assert {len(column) for column in index["rollouts"].values()} == {66}
    for row, (number, member) in enumerate(zip(index["rollouts"]["group"], index["rollouts"]["member"], strict=True)):
        _, split, step, task, block, place = index["groups"][number]
        details, record = data[f"chunk-{block}"][place][member], run.groups[number].rollouts[member]
        assert details["text"] == record.text and split == "train"
        assert (step, task) == (run.groups[number].step, run.groups[number].task)
        assert index["rollouts"]["reward"][row] == pytest.approx(record.reward, rel=1e-3)
        assert details["conversations"][0]["turns"][0]["tokens"] == record.conversations[0].turns[0].tokens


def test_texts_of_a_model_are_no_markup(tmp_path: Path) -> None:
    page = make_page([read_run(make_run(tmp_path / HOSTILE.replace("/", "|")[:60], steps=2))])
    assert HOSTILE in json.dumps(blocks(page), ensure_ascii=False).replace('\\"', '"')
    parsed = Scripts(page)
    code = [text for attributes, text in parsed.scripts if attributes.get("type") is None]
    assert len(code) == 1 and "window.broken" not in page and "onerror" not in page
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        assert name not in code[0], name
    for attributes, text in parsed.scripts:
        assert attributes.get("type") is None or re.fullmatch(r"[A-Za-z0-9+/=]+", text)


def test_the_policy_admits_the_pages_own_script_and_no_connection(tmp_path: Path) -> None:
    page = make_page([read_run(make_run(tmp_path / "luffy", steps=2))])
    parsed = Scripts(page)
    (code,) = [text for attributes, text in parsed.scripts if attributes.get("type") is None]
    style = page.partition("<style>")[2].partition("</style>")[0]
    for text in (code, style):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in parsed.policy
    assert (
        "default-src 'none'" in parsed.policy and "unsafe" not in parsed.policy and "connect-src" not in parsed.policy
    )
    assert set(parsed.links) == {"data:,", "#view"}
    assert re.findall(r"(?:https?:)?//[a-z]+\.[a-z0-9.]+", code) == ["http://www.w3.org"]  # a name, not an address


def test_every_static_file_is_in_the_page(tmp_path: Path) -> None:
    page = make_page([read_run(make_run(tmp_path / "luffy", steps=1))])
    for path in STATIC.glob("*.js"):
        assert path.read_text() in page, path.name
    assert (STATIC / "style.css").read_text() in page


def test_of_too_many_rollouts_complete_groups_are_left_out_evenly(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "luffy", steps=50, episodes=False))
    index = blocks(make_page([run], max_rollouts=100))["index"]
    steps = [group[2] for group in index["groups"]]
    assert 90 <= len(index["rollouts"]["group"]) <= 100 and len(index["rollouts"]["group"]) % 4 == 0
    assert index["left_out"] == 400 - len(index["rollouts"]["group"])
    assert min(steps) < 4 and max(steps) > 45 and len(set(steps)) == len(steps)


def test_curves_of_a_resumed_run_continue_at_its_checkpoint(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for first, last, value in ((0, 8, 1.0), (5, 7, 2.0)):  # killed at 7, resumed at 5
        with SummaryWriter(str(tmp_path), filename_suffix=f".{first}") as board:
            for step in range(first, last):
                board.add_scalar("train/loss", value, step)
        for file in tmp_path.glob(f"events*.{first}"):  # names begin with the time, in seconds
            file.rename(tmp_path / f"events.out.tfevents.{first}.x")
    assert read_curves(tmp_path)["train/loss"] == ([0, 1, 2, 3, 4, 5, 6], [1.0] * 5 + [2.0] * 2)


def test_curves_are_read_from_csv_files_and_incomplete_event_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,val/score\n0,0,0.5\n0,1,\n0,2,nan\n0,3,0.75\n")
    assert read_curves(tmp_path)["val/score"] == ([0, 3], [0.5, 0.75])
    run = make_run(tmp_path / "run", steps=5)
    (file,) = (run / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-20])  # killed while it wrote
    assert read_curves(run)["train/loss"].steps == [1, 2, 3, 4, 5]


def test_curves_of_many_csv_files_are_in_the_order_of_their_versions(tmp_path: Path) -> None:
    for version in range(11):  # each process makes two steps, and the next one repeats the second
        file = tmp_path / "lightning_logs" / f"version_{version}" / "metrics.csv"
        file.parent.mkdir(parents=True)
        file.write_text(f"step,train/loss\n{version},{version}\n{version + 1},99\n")
    assert read_curves(tmp_path)["train/loss"] == (list(range(12)), [*map(float, range(11)), 99.0])


def test_a_later_evaluation_leaves_the_curve_of_training(tmp_path: Path) -> None:
    for version, rows in enumerate(("1,1,0.1\n2,1,0.2\n3,1,0.3\n", "2,,0.25\n")):
        (tmp_path / f"version_{version}").mkdir()
        (tmp_path / f"version_{version}" / "metrics.csv").write_text(f"step,train/loss,val/score\n{rows}")
    assert read_curves(tmp_path)["val/score"] == ([1, 2, 3], [0.1, 0.25, 0.3])


def test_runs_have_different_names() -> None:
    assert run_names([Path("/a/runs/x"), Path("/a/runs/y")]) == ["x", "y"]
    assert run_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    with pytest.raises(ValueError, match="got one of them twice"):
        run_names([Path("/a/x"), Path("/a/x")])


def test_settings_that_differ() -> None:
    first = "a: {b: 1, c: [1, 2]}\ncallbacks: [{class_path: x.Y, init_args: {n: 1}}, {class_path: x.Z}]"
    second = "a: {b: 2, c: [1, 2]}\ncallbacks: [{class_path: x.Z}, {class_path: x.Y, init_args: {n: 3}}]\nd: text"
    assert differing_settings([first, second]) == {
        "a.b": ["1", "2"], "callbacks.Y.init_args.n": ["1", "3"], "d": ["", "text"]
    }  # fmt: skip


def test_the_command_writes_the_page_beside_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "luffy", steps=2)
    main(["show", str(run)])
    assert blocks((run / "run.html").read_text())["index"]["runs"][0]["name"] == "luffy"
    assert "run.html: 6 curves, 22 rollouts" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"lit-rft show: there is no folder .*nothing"):
        main(["show", str(tmp_path / "nothing")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.yaml, no curves and no rollouts"):
        main(["show", str(tmp_path / "empty")])
