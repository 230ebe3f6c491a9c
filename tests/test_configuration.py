"""The page about variables, and what the code reads."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from pipelines.step_file import read_step_file
from pipelines.stream_environment import VARIABLES, read_stream_environment
from pipelines.stream_settings import ALL, LATE_CLASSIFICATION, XMATCH

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "configuration.md").read_text()
MODULES = sorted((ROOT / "pipelines").glob("*environment*.py"))
NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")


class Recorder(dict):
    """Variables that remember which of them were looked at."""

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.read.add(name)
        return super().get(name, default)


def in_the_page() -> list[str]:
    return re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.M)


def in_the_code() -> set[str]:
    """All texts in the modules that look like names of variables."""
    assert [module.name for module in MODULES] == ["environment.py", "stream_environment.py"]
    trees = [ast.parse(module.read_text()) for module in MODULES]
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {text for text in texts if isinstance(text, str) and NAME.fullmatch(text)}


def test_the_page_has_every_variable_once() -> None:
    names = in_the_page()
    assert len(names) == len(set(names))
    assert set(names) == in_the_code() == VARIABLES


def test_no_other_module_reads_the_environment() -> None:
    """The command line hands the variables over; workers inherit them."""
    reading = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("[!.]*/**/*.py")
        if path.parts[len(ROOT.parts)] not in ("tests", "benchmarks", "scripts", "build")
        and re.search(r"os\.environ|os\.getenv", path.read_text())
    }
    assert reading == {"messaging/child_process.py", "pipelines/cli.py", "pipelines/workers.py"}


@pytest.mark.parametrize("step", [XMATCH, LATE_CLASSIFICATION, ALL])
def test_every_variable_is_looked_at(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"TOPIC_STRATEGY_FORMAT": "a_%s", "PRODUCER_TOPIC_FORMAT": "b_%s", "DB_HOST": ""}
    recorder = Recorder(values)
    monkeypatch.setattr("pipelines.stream_environment._merged", lambda variables, file: recorder)
    read_stream_environment({}, step)
    # Those of the database are looked at only where they are set.
    expected = {name for name in VARIABLES if not name.startswith("DB_") and name not in ("ENGINE", "CONFIG_FROM_YAML")}
    assert recorder.read >= expected - ({"MODEL_CLASS"} if step == XMATCH else set())


def test_the_file_of_the_page_is_understood(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    file = read_step_file(str(path), VARIABLES)
    assert file.notices == ()
    assert file.options == {"consumer": {"ssl.ca.location": "/certificates/ca.pem"}}
    for name in re.findall(r"# ([A-Z_]{5,})\b", text):
        assert name in file.variables or name == "TOPIC_STRATEGY", name
    found = read_stream_environment({"CONFIG_FROM_YAML": str(path)}, LATE_CLASSIFICATION)
    assert found.notices == ()
    assert found.consumer.settings().topics == ("topic_one", "topic_two")
    strategy = yaml.safe_load(re.sub(r"^  # ?", "  ", "".join(re.findall(r"^  # .*\n", text, re.M)), flags=re.M))
    path.write_text(yaml.safe_dump({"CONSUMER_CONFIG": strategy}))
    daily = read_stream_environment({"CONFIG_FROM_YAML": str(path)}, XMATCH).consumer.topics
    assert daily == read_stream_environment({"TOPIC_STRATEGY_FORMAT": "ztf_%s_programid1"}, XMATCH).consumer.topics
