"""Options that follow from settings: each field of a settings class is an option with its type, default and docstring.

    data = OptionGroup("persephonee.data_partitions.settings:DataSettings", panel="Data", renamed={"seed": "data_seed"})

    @with_groups(data=data)
    def personalise(user: Annotated[str, typer.Option(...)], data: DataSettings, seed: Seed = 0) -> None: ...

`persephonee personalise` then has the options --user, --dataset, --data-path and so on, --data-seed and --seed. The
class is named in text, and loaded when Typer first asks for the options: importing this must load nothing heavy.
"""

import ast
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any

import typer

from persephonee.fl_app.settings.run_config import flat_value, parse_value, types_of

Verb = Callable[..., None]
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True)
class OptionGroup:
    """The fields of a settings class as options of a verb."""

    settings: str
    """package.module:Class of a dataclass, whose module must not import PyTorch."""

    panel: str | None = None
    """Under which heading --help shows the options."""

    only: tuple[str, ...] = ()
    """The fields that are options; all where none is named."""

    leave_out: tuple[str, ...] = ()
    """Fields that are none."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """What a field's option is called where that is not the field's own name."""

    no_default: tuple[str, ...] = ()
    """Fields whose option has no default, so that the verb can ask whether it was given."""

    @cached_property
    def settings_class(self) -> Any:
        """The class itself."""
        module, _, name = self.settings.partition(":")
        return getattr(importlib.import_module(module), name)

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The options by field, as parameters of a function that Typer understands."""
        hints, helps = typing.get_type_hints(self.settings_class), field_docstrings(self.settings_class)
        found = {}
        for one in fields(self.settings_class):
            if (self.only and one.name not in self.only) or one.name in self.leave_out:
                continue
            name = self.renamed.get(one.name, one.name)
            kind, default = hints[one.name], one.default_factory() if callable(one.default_factory) else one.default
            if _is_text(one.name, hints[one.name]):
                kind, default = str, flat_value(one.name, default)
            if one.name in self.no_default:
                kind, default = kind | None, None
            option = typer.Option(f"--{name.replace('_', '-')}", help=helps[one.name], rich_help_panel=self.panel)
            default = inspect.Parameter.empty if default is MISSING else default
            found[one.name] = inspect.Parameter(name, KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        return found

    @property
    def names(self) -> list[str]:
        """What the options are called, with underscores."""
        return [parameter.name for parameter in self.parameters.values()]

    def build(self, values: Mapping[str, Any]) -> Any:
        """Return the settings that the values of all options of a verb, by name, make.

        Raises:
            RunConfigError: a text does not say what its field holds.
            ValueError: what the settings themselves refuse.
        """
        hints, arguments = typing.get_type_hints(self.settings_class), {}
        for name, parameter in self.parameters.items():
            value = values[parameter.name]
            if name in self.no_default and value is None:
                continue
            text = _is_text(name, hints[name])
            arguments[name] = parse_value(name, value, types_of(hints[name])) if text else value
        return self.settings_class(**arguments)


def field_docstrings(settings_class: type) -> dict[str, str]:
    """Return the first paragraph below each field of a dataclass, on one line."""
    (tree,) = ast.parse(inspect.getsource(settings_class)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split("\n\n")[0].split())
    return found


def _is_text(name: str, kind: Any) -> bool:
    """Return whether an option is written as a run configuration writes it: the labels' words, numbers with commas."""
    return name == "labels" or tuple in types_of(kind)


class _VerbWithGroups:
    """A verb as Typer calls it; its signature, all options, is made when somebody asks for it."""

    def __init__(self, verb: Verb, groups: Mapping[str, OptionGroup]) -> None:
        self._verb, self._groups = verb, groups
        self._own = inspect.signature(verb).parameters
        self.__name__, self.__doc__, self.__annotations__ = verb.__name__, verb.__doc__, {}

    @cached_property
    def __signature__(self) -> inspect.Signature:
        merged = {name: parameter for name, parameter in self._own.items() if name not in self._groups}
        for group in self._groups.values():
            for parameter in group.parameters.values():
                merged.setdefault(parameter.name, parameter)
        return inspect.Signature([parameter.replace(kind=KEYWORD_ONLY) for parameter in merged.values()])

    def __call__(self, **values: Any) -> None:
        made = {name: group.build(values) for name, group in self._groups.items() if name in self._own}
        own = {name: value for name, value in values.items() if name in self._own and name not in self._groups}
        self._verb(**own, **made)


def with_groups(**groups: OptionGroup) -> Callable[[Verb], Verb]:
    """Add the groups' options to a verb; each group's settings arrive as the argument that it is named for.

    A group that is no argument of the verb only adds its options. Options of the same name are one option; it is the
    verb's own, or else that of the first group that has it.
    """
    return lambda verb: _VerbWithGroups(verb, groups)
