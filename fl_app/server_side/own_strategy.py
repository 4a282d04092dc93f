"""A strategy of one's own: `--set strategy=package.module:function`, from a module that the server's owner allows.

The function takes no argument and returns one of Flower's strategies, or an object with their `aggregate_train`, which
alone is used. It is called once for each exit, so that what a strategy remembers concerns one exit; a run that is
resumed begins with new ones.
"""

from typing import Any

from persephonee.fl_app.errors import RunConfigError
from persephonee.multi_exit.errors import BackboneError
from persephonee.multi_exit.own_networks import imported


def own_strategy(name: str, allowed: tuple[str, ...]) -> Any:
    """Return a new strategy of this name.

    Args:
        name: `package.module:function`.
        allowed: the modules that may be imported here.

    Raises:
        RunConfigError: the module is not allowed or cannot be imported, or the function gives no strategy.
    """
    module = name.split(":")[0]
    if module not in allowed:
        raise RunConfigError(
            f"strategy {name!r} comes from {module!r}, but only {', '.join(allowed)} may be used here: name {module!r} "
            "with --sources if you trust it."
        )
    try:
        made = imported(name, "strategy")()
    except BackboneError as error:
        raise RunConfigError(str(error)) from None
    except Exception as error:  # one's own code may raise anything
        raise RunConfigError(f"strategy {name!r} fails when it is made ({error}): it takes no argument.") from None
    if not callable(getattr(made, "aggregate_train", None)):
        raise RunConfigError(
            f"strategy {name!r} returned {type(made).__name__}, which has no aggregate_train: return one of Flower's "
            "strategies."
        )
    return made
