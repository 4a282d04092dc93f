"""Groups of options that several verbs share: a function whose parameters are the options, and which makes settings.

    def data_settings(*, dataset: Annotated[str, typer.Option(...)] = "femnist", seed: Seed = 0) -> DataSettings: ...

    @takes(data=data_settings)
    def personalise(user: Annotated[str, typer.Option(...)], data: DataSettings, seed: Seed = 0) -> None: ...

`persephonee personalise` then has the options --user, --dataset and --seed.
"""

import inspect
from collections.abc import Callable
from typing import Any

Group = Callable[..., Any]
Verb = Callable[..., None]


def with_groups(**groups: Group) -> Callable[[Verb], Verb]:
    """Add the groups' options to a verb; each group's result arrives as the argument that it is named for.

    Options of the same name are one option. It keeps the default of the verb, or else of the first group that has it.
    """

    def decorate(verb: Verb) -> Verb:
        own = {n: p for n, p in inspect.signature(verb).parameters.items() if n not in groups}
        options = {name: tuple(inspect.signature(group).parameters.values()) for name, group in groups.items()}
        merged = dict(own)
        for parameters in options.values():
            for parameter in parameters:
                merged.setdefault(parameter.name, parameter)

        def with_options(**values: Any) -> None:
            made = {name: group(**{p.name: values[p.name] for p in options[name]}) for name, group in groups.items()}
            verb(**{name: values[name] for name in own}, **made)

        with_options.__name__ = verb.__name__
        with_options.__doc__ = verb.__doc__
        with_options.__annotations__ = {name: parameter.annotation for name, parameter in merged.items()}
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in merged.values()]
        with_options.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        return with_options

    return decorate
