"""The examples run, its commands exist, and the documents name files and tests that are there."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from persephonee.commands.application import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Return the words of each `persephonee` command line in a document's shell blocks."""
    lines = "\n".join(code_blocks(text, "sh")).replace("\\\n", " ").splitlines()
    found = (re.match(r"\s*(?:\S*/)?persephonee (.*)", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


@pytest.mark.slow
def test_the_example_with_a_network_of_ones_own_runs_as_printed_and_gains_accuracy(tmp_path):
    page = (ROOT / "docs" / "own-cnn.md").read_text()
    examples = {block.splitlines()[0].removeprefix("# "): block for block in code_blocks(page, "python")}
    assert examples.keys() == {"my_cnn.py", "personalise_my_cnn.py"}
    for name, text in examples.items():
        (tmp_path / name).write_text(text)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    for name in examples:
        run = [sys.executable, name]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    printed = re.findall(r"(\d+)% -> (\d+)% at (\d+)% of", done.stdout)
    gains = [int(after) - int(before) for before, after, _ in printed]
    assert len(gains) == 10
    assert sum(gains) / len(gains) > 5
    assert all(int(macs) < 100 for _, _, macs in printed)


def test_the_package_its_citation_and_the_newest_dated_entry_of_the_changelog_have_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = re.findall(r"^(version|date-released): (\S+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    entries = re.findall(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert dict(citation) == {"version": version, "date-released": entries[0][1]}
    assert entries[0][0] == version
    assert entries == sorted(entries, key=lambda entry: entry[1], reverse=True)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_documents_have_verbs_and_options_that_exist(path):
    for words in commands(path.read_text()):
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            assert words[0] in command.commands, f"persephonee {' '.join(words)}"
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, f"{command.name} {' '.join(words)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_tests_that_the_documents_name_are_there(path):
    text = path.read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert all((path.parent / link).exists() for link in links), links
    folders = "persephonee|multi_exit|data_partitions|clients|server|fl_app|experiments|benchmarks|tests|docs"
    named = re.findall(rf"`((?:{folders})/[\w/]*\.?\w*)`", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
    sources = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    unknown = [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in sources]
    assert not unknown
