"""What the command line says when something goes wrong: one sentence on stderr, and an exit status.

    0    done
    2    what was asked for cannot be done: the sentence says what was expected, what was got and what to do
    130  interrupted with Ctrl-C

Anything else is a mistake of this program and shows its traceback.
"""

import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

BAD_INPUT = 2
INTERRUPTED = 130

_EXPECTED = (
    ("persephonee.multi_exit.errors", "MultiExitError"),
    ("persephonee.data_partitions.errors", "DataError"),
    ("persephonee.clients.errors", "ClientError"),
    ("persephonee.server.errors", "ServerError"),
    ("persephonee.fl_app.errors", "AppError"),
)
"""The bases of all errors that a user can cause, by module: one that is not loaded cannot have been raised."""

_EXTRA_OF = {
    "flwr": "flower",
    "cryptography": "flower",
    "ray": "simulation",
    "matplotlib": "report",
    "jinja2": "report",
    "markupsafe": "report",
    "datasets": "datasets",
    "flwr_datasets": "datasets",
    "torch": "train",
    "torchvision": "train",
    "onnx": "export",
    "onnxscript": "train",
    "pyarrow": "parquet",
    "psutil": "simulation",
    "timm": "timm",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "sqlalchemy": "mlflow",
    "pandas": "pandas",
    "huggingface_hub": "hub",
    "h5py": "data",
    "scipy": "data",
}
"""Which extra of this project brings an optional package."""

_ONLY_IN_A_CHECKOUT = ("persephonee.experiments", "persephonee.benchmarks")

_MISUSE: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""The base of what typer raises for a wrong call: click's own up to typer 0.25, a copy that is typer's from 0.26 on.
Neither is exported, and click need not be installed."""


class _OneSentence:
    """What a user's error ends in: one sentence, and never a traceback; of what typer calls a command."""

    own_name: str | None = None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run it and exit with its status."""
        run: Callable[..., Any] = super().main  # type: ignore[misc]
        _end(lambda: run(args, prog_name or self.own_name, complete_var, False, windows_expand_args, **extra))


class OneSentenceGroup(_OneSentence, TyperGroup):
    """The command line's top level."""

    own_name = "persephonee"


class OneSentenceCommand(_OneSentence, TyperCommand):
    """A program that has no verbs."""


def _end(run: Callable[[], Any]) -> NoReturn:
    """Run, say in one sentence what went wrong, and exit with the status."""
    try:
        result = run()
        status = result if isinstance(result, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe has gone, as in `persephonee inspect ... | head -3`
        sys.stdout = None
        status = 1
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        typer.echo(f"Error: {sentence}", err=True)
        status = BAD_INPUT
    if status == INTERRUPTED:
        typer.echo("Interrupted.", err=True)
    sys.exit(status)


def sentence_of(error: Exception) -> str | None:
    """Return what to tell the user, or None where the error is a mistake of this program."""
    if isinstance(error, _MISUSE):
        if type(error).__name__ == "NoArgsIsHelpError":
            return "expected a verb: see persephonee --help."
        return _one_line(error.format_message())
    if _is_expected(error):
        return _one_line(str(error))
    if isinstance(error, ImportError | RuntimeError) and _is_torch_mismatch(error):
        return (
            "torch and torchvision do not belong together, as happens when they come from different package indexes: "
            "install both with one command from one place, as the README shows."
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing_package(error.name)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or type(error).__name__}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        # while a file was written that is open already; such an error names none
        return f"{error.strerror}: make room on the disk, and call this again."
    return None


def _is_expected(error: Exception) -> bool:
    bases = tuple(getattr(sys.modules[module], name) for module, name in _EXPECTED if module in sys.modules)
    return isinstance(error, bases)


def _is_torch_mismatch(error: Exception) -> bool:
    return "torchvision::" in str(error) or ("torchvision" in str(error) and "undefined symbol" in str(error))


def _missing_package(module: str) -> str | None:
    package = module.split(".")[0]
    if module.startswith(_ONLY_IN_A_CHECKOUT):
        return (
            "this verb runs the studies in the folder experiments, which an installed wheel leaves out: "
            "clone the repository, run make install there, and use its .venv/bin/persephonee."
        )
    if package in _EXTRA_OF:
        return (
            f"this needs the package {package}, which is not installed: "
            f'install it with pip install "persephonee[{_EXTRA_OF[package]}]".'
        )
    if package == "persephonee":
        return None
    return f"this needs the package {package}, which is not installed: install it with pip install {package}."


def _one_line(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if line.endswith((".", "?", "!")) else f"{line}."


def printable(text: str) -> str:
    """Return text of somebody else's with a replacement character for each that would steer a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
