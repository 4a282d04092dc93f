"""The modules of experiments and benchmarks that are programs: a user's mistake ends in one sentence there too."""

import ast
import importlib
from pathlib import Path

import pytest

from persephonee.commands.terminal import program_of
from tests.commands.command_line import refused

ROOT = Path(__file__).resolve().parents[2]
STARTED_BY_US = ("one_method", "plain_loop", "pfl_research", "plain_flower_run")
"""Parts of a benchmark, each in a process of its own, which no person calls."""


def programs() -> list[str]:
    files = [path for folder in ("experiments", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    chosen = [path for path in files if '__name__ == "__main__"' in path.read_text()]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in chosen]
    return [name for name in names if name.rpartition(".")[2] not in STARTED_BY_US]


@pytest.mark.parametrize("name", programs())
def test_each_program_is_run_so_that_a_mistake_ends_in_a_sentence(name):
    *_, last = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text()).body
    assert ast.unparse(last).endswith("run_program(main)")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("experiments.byzantine.experiment --model M --out O --hostile 1,x", "--hostile 1,x is not known"),
        ("experiments.byzantine.experiment --model M --out O --hostile 13", "more than --clients 12"),
        ("experiments.byzantine.experiment --model M --out O --page notes.md", "notes.md lacks the marks"),
        ("experiments.membership.experiment --model M --out O --noise -1", "--noise -1 is not known"),
        ("experiments.membership.experiment --model M --out notes.md", "notes.md: a folder was expected"),
        ("experiments.meta_learning.experiment --model M --out O --start M", "--start M names no model"),
        ("experiments.prior.experiment --model M --out O --temperature 0", "temperature=0.0 is out of range"),
        ("experiments.prior.experiment --model M --out O", "M is no model folder"),
        ("experiments.risk.experiment --model M --out O --data qmnist", "needs --data-path"),
        ("experiments.lifelong.experiment --model M --out O --scale big", "'big' is not one of"),
        ("experiments.fast_schedule M --users 0", "0 is not in the range"),
        ("experiments.forgetting M --labels most", "labels='most'"),
        ("experiments.results_page.page M --out notes.md", "M holds no figures"),
        ("experiments.backbone_table --fast", "No such option"),
        ("experiments.data.qmnist --files F --out O", "is missing: fetch it from"),
        ("experiments.data.femnist", "Give either --out"),
        ("benchmarks.make_models --kind writers --out notes.md", "notes.md: a folder was expected"),
        ("benchmarks.simulation.scaling --model M --out O --users 2,3.5", "--users 2,3.5 is not known"),
        ("benchmarks.inference.benchmark --model M --out .", "inference holds something other than a benchmark's"),
        ("benchmarks.page.page O --page notes.md", "notes.md is a page of another kind"),
        ("benchmarks.run_all --only everything --out O", "--only everything is no part of a run"),
    ],
)
def test_a_mistake_is_said_before_anything_is_computed_and_nothing_of_the_users_is_replaced(
    tmp_path, monkeypatch, call, named
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("# Results\n\nmy own")
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "plans.txt").write_text("mine")
    name, *words = call.split()
    main = importlib.import_module(f"persephonee.{name}").main
    assert named in refused(*words, program=program_of(main))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inference", "notes.md"]
