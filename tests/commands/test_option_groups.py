"""Options follow from the fields of settings: type, default and help."""

import dataclasses
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from persephonee.commands.application import app
from persephonee.commands.option_groups import OptionGroup, with_groups
from persephonee.fl_app.settings.run_config import flat_value
from tests.commands.command_line import refused

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("pretrain", "inspect", "simulate", "personalise", "device run", "device enrol")


@dataclass(frozen=True, kw_only=True)
class RoomSettings:
    """A room."""

    size: int = 3
    """Side of the room, in m,
    at least 1.

    This is no help.
    """

    height: float | None = None
    """Of the ceiling, in m."""

    colour: Literal["white", "green"] = "white"
    """Of the walls."""

    plan: Path | None = None
    """Where the plan lies."""

    doors: tuple[float, ...] = (0.5, 1.0)
    """Where the doors are."""

    heated: bool = False
    """Whether it is heated."""

    labels: float = 1.0
    """Fraction that has labels."""

    walls: list[int] = field(default_factory=list)
    """This is no option."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} is too small.")


ROOM = OptionGroup(f"{__name__}:RoomSettings", leave_out=("walls",), renamed={"size": "side"}, no_default=("colour",))


def call_with(group: OptionGroup, *words: str):
    """Return the settings that a verb with this group gets, and its result."""
    got = []

    @with_groups(room=group)
    def verb(*, room: RoomSettings, seed: Annotated[int, typer.Option(help="The seed.")] = 0) -> None:
        got.append((room, seed))

    verbs = typer.Typer()
    verbs.command()(verb)
    result = CliRunner().invoke(verbs, words)
    return got, result


def test_options_that_are_left_out_make_the_settings_that_the_class_makes():
    assert call_with(ROOM)[0] == [(RoomSettings(), 0)]


def test_each_option_sets_its_field_with_the_field_s_type():
    words = "--side 5 --height 2.5 --colour green --plan p.pdf --doors 0,2.5 --heated --labels none --seed 4"
    wanted = RoomSettings(
        size=5, height=2.5, colour="green", plan=Path("p.pdf"), doors=(0.0, 2.5), heated=True, labels=0.0
    )
    assert call_with(ROOM, *words.split())[0] == [(wanted, 4)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--side", "x"), "'x' is not a valid integer"),
        (("--colour", "red"), "'red' is not one of 'white', 'green'"),
        (("--walls", "1"), "No such option"),
        (("--size", "1"), "No such option"),
    ],
)
def test_what_no_field_can_hold_is_refused(words, says):
    result = call_with(ROOM, *words)[1]
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "says"), [(("--side", "0"), "size=0 is too small."), (("--doors", "a,b"), "doors='a,b' is not known")]
)
def test_what_the_settings_refuse_reaches_the_caller(words, says):
    assert says in str(call_with(ROOM, *words)[1].exception)


def test_help_is_the_first_paragraph_of_the_docstring_on_one_line():
    helps = {parameter.name: option_of(parameter).help for parameter in ROOM.parameters.values()}
    assert helps["side"] == "Side of the room, in m, at least 1."
    assert helps["heated"] == "Whether it is heated."


def test_an_option_of_two_groups_is_one_option():
    got = []

    @with_groups(first=OptionGroup(ROOM.settings, only=("size",)), second=OptionGroup(ROOM.settings, only=("size",)))
    def verb(*, first: RoomSettings, second: RoomSettings) -> None:
        got.append((first.size, second.size))

    verbs = typer.Typer()
    verbs.command()(verb)
    CliRunner().invoke(verbs, ["--size", "7"])
    assert got == [(7, 7)]


def option_of(parameter: inspect.Parameter):
    return typing.get_args(parameter.annotation)[1]


def command_of(words: str):
    command = typer.main.get_command(app)
    for word in words.split():
        command = command.commands[word]
    return command


def groups_of(words: str) -> Iterator[tuple[object, OptionGroup]]:
    """Yield the command and each group of options of a verb."""
    command = command_of(words)
    for group in command.callback.__wrapped__._groups.values():
        yield command, group


def docstring(settings_class: type, name: str) -> str:
    """Return the first paragraph of a field's docstring, as text that follows the field in its file."""
    found = re.search(
        rf'^    {name}: [^\n]*\n    """(.*?)"""$', inspect.getsource(settings_class), re.MULTILINE | re.DOTALL
    )
    assert found, name
    return " ".join(found[1].split("\n\n")[0].split())


@pytest.mark.parametrize("words", VERBS)
def test_every_option_that_sets_a_field_has_its_default_and_its_docstring(words):
    seen = 0
    for command, group in groups_of(words):
        options = {option.name: option for option in command.params}
        defaults = {f.name: f for f in dataclasses.fields(group.settings_class)}
        for name, parameter in group.parameters.items():
            if name == "seed" and parameter.name == "seed":
                # a verb's own: one seed for all that it does
                continue
            option = options[parameter.name]
            wanted = None if name in group.no_default else defaults[name].default
            assert option.help == docstring(group.settings_class, name), name
            assert (option.default or "") == (flat_value(name, wanted) or ""), name
            seen += 1
    assert seen > 1


def test_no_verb_writes_an_option_by_hand_that_a_settings_field_has():
    known = {
        f.name for words in VERBS for _, group in groups_of(words) for f in dataclasses.fields(group.settings_class)
    }
    # words of a verb's own that mean more, or something else, than the field of that name
    known -= {"seed", "sources", "model", "clients", "resume", "overwrite", "share_exits", "client_id", "max_users"}
    for words in VERBS:
        verb = command_of(words).callback.__wrapped__
        by_hand = set(verb._own) - set(verb._groups)
        # of a CNN that is not yet a model
        assert by_hand & known <= ({"backbone", "num_classes"} if words == "inspect" else set()), words


def test_help_of_every_verb_answers_without_pytorch_and_flower():
    lines = [f"runner.invoke(app, {[*words.split(), '--help']!r})" for words in VERBS]
    script = "\n".join(
        (
            "import sys",
            "from typer.testing import CliRunner",
            "from persephonee.commands.application import app",
            "runner = CliRunner()",
            *(f"assert {line}.exit_code == 0" for line in lines),
            "print(*{'torch', 'numpy', 'pandas', 'matplotlib', 'flwr', 'ray'} & set(sys.modules))",
        )
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_a_group_s_error_ends_in_one_sentence():
    assert "epochs=0" in refused("personalise", "--model", "M", "--user", "1", "--store", "S", "--epochs", "0")
