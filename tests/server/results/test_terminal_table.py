import io

import pytest
from rich.console import Console

from persephonee.server.results.results import summarise
from persephonee.server.results.table_schemas import make_table, write_table
from persephonee.server.results.terminal_table import counted, print_summary


def printed(run, width=80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(summarise(run.tables()), console)
    return console.file.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_the_table_fits_into_eighty_columns_with_nothing_cut(fake_run):
    text = printed(fake_run(users=10))
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    for column in ("before", "after", "original", "helped", "hurt", "kept", "leave here", "MMAC", "cost"):
        assert column in text


def test_those_who_were_left_out_are_named(fake_run):
    text = printed(fake_run(users=3), width=200)
    assert "left out: f3001_11: too small: 8 samples" in text
    assert "left out: f3005_17: failed" in text


def test_a_client_cannot_command_the_terminal_with_its_words(fake_run):
    run = fake_run(users=3)
    rows = run.tables().clients.to_pylist()
    odd = {"round": 1, "client_id": "mallory\x1b[2J", "status": "refused: \x1b]0;you\x07"}
    write_table(run.path, "clients", make_table("clients", [*rows, odd]))
    text = printed(run, width=200)
    assert "\x1b" not in text and "\x07" not in text and "mallory\ufffd[2J" in text


def test_a_run_without_a_valid_user_prints_no_table(fake_run):
    text = printed(fake_run(users=0))
    assert "No user gave a valid result" in text and "MMAC" not in text


@pytest.mark.parametrize(("number", "said"), [(0, "0 exits"), (1, "1 exit"), (2, "2 exits")])
def test_one_of_a_thing_is_no_plural(number, said):
    assert counted(number, "exit") == said
