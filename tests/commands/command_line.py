"""How the tests of the command line call it, and what they train with it."""

import typer
from typer.testing import CliRunner

from persephonee.commands.application import app
from tests.tiny_cnn import NAME

NETWORK = ("--backbone", NAME, "--num-exits", "2", "--head", "pooled")


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object, program: typer.Typer = app) -> str:
    """Call a verb, or a program of its own, that must end with status 2 and one sentence; return the sentence."""
    result = CliRunner().invoke(program, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    # log lines begin with the time
    lines = [line for line in result.stderr.splitlines() if not line[:2].isdigit()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", "?"))
    return lines[0]
