"""ONNX Runtime's sessions as a small device needs them: few threads, little memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persephonee.multi_exit.errors import ModelFileError, SettingsError

if TYPE_CHECKING:
    import onnxruntime


def require_providers(providers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the providers by the names that the installed ONNX Runtime has for them, whatever their case.

    Raises:
        SettingsError: one of them is not in the installed build.
    """
    import onnxruntime

    available = {name.lower(): name for name in onnxruntime.get_available_providers()}
    missing = [name for name in providers if name.lower() not in available]
    if missing:
        short = ", ".join(name.removesuffix("ExecutionProvider") for name in available.values())
        raise SettingsError(
            f"the execution provider {missing[0].removesuffix('ExecutionProvider')} is not in the installed build of "
            f"ONNX Runtime, which has {short}: install a build that has it, or choose among these."
        )
    return tuple(available[name.lower()] for name in providers)


def open_session(
    graph: bytes | Path, *, threads: int = 0, providers: tuple[str, ...] = ("CPUExecutionProvider",)
) -> "onnxruntime.InferenceSession":
    """Return a session of a graph that has been checked.

    Args:
        graph: its bytes, or its file.
        threads: per operator, at least 1; 0 takes one for each core.
        providers: execution providers by ONNX Runtime's names, the first that can run an operator runs it.

    Raises:
        ModelFileError: ONNX Runtime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # a stage of its own at a time works: the threads of the others must not spin
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # what is kept for the next run would be memory that the other stages lack
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph), options, providers=list(providers)
        )
    except Exception as error:  # ONNX Runtime raises a dozen kinds of errors that have no other base
        reason = str(error).splitlines()[0][:160]
        raise ModelFileError(f"ONNX Runtime refuses the graph ({reason}): write it again.") from None


def run_session(
    session: "onnxruntime.InferenceSession",
    outputs: Sequence[str],
    inputs: dict[str, Any],
    options: "onnxruntime.RunOptions | None" = None,
) -> list[Any]:
    """Return what a graph makes of its inputs.

    Raises:
        ModelFileError: the graph fails on them; a stranger's may ask for more memory than there is.
    """
    try:
        return session.run(outputs, inputs, options)  # type: ignore[no-any-return]
    except Exception as error:  # as above
        reason = str(error).splitlines()[0][-160:]
        raise ModelFileError(f"the graph fails when it is run ({reason}): write it again.") from None
