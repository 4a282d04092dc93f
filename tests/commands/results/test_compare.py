import json

from tests.commands.command_line import call, refused
from tests.server.made_runs import write_run


def test_compare_prints_both_runs_and_draws_a_page(tmp_path):
    one = write_run(tmp_path / "one", {"a": 0.5, "b": 0.6, "c": 0.8})
    two = write_run(tmp_path / "two", {"a": 0.6, "b": 0.7, "c": 0.9})
    done = call("compare", one.path, two.path, "--out", tmp_path / "page")
    assert done.exit_code == 0, done.output
    assert "Against one, two is 10.00 points more accurate" in " ".join(done.output.split())
    assert (tmp_path / "page" / "comparison.html").is_file()
    assert json.loads((tmp_path / "page" / "comparison.json").read_text())["users"] == ["a", "b", "c"]
    printed = json.loads(call("compare", one.path, two.path, "--json").stdout)
    assert printed["runs"][1]["difference"]["change"]["helped"] == 1.0


def test_runs_that_cannot_be_compared_end_in_one_sentence(tmp_path):
    one = write_run(tmp_path / "one", {"a": 0.5, "b": 0.6})
    other = write_run(tmp_path / "other", {"a": 0.5, "b": 0.6}, dataset="leaf")
    assert "on the same data" in refused("compare", one.path, other.path)
    assert "two run folders" in refused("compare", one.path)
