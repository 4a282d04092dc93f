"""What stands in an exported network's folder: `policy.json` and one ONNX graph per merged stage and head in use.

`policy.json` is replaced last and names the graphs by their content, so a reader finds the old network or the new one.
Needs neither PyTorch nor ONNX Runtime.
"""

import contextlib
import errno
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persephonee.clients.errors import ExportError
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.multi_exit.checked_json import read_json_object, with_digest, without_digest

FORMAT = 1
POLICY_FILE = "policy.json"
_GRAPH_NAME = re.compile(r"(?:stage|head)-\d+-([0-9a-f]{12})\.onnx")


@dataclass(frozen=True, kw_only=True)
class ExportedStep:
    """One step of the inference.

    Attributes:
        exit: number of the exit at the end of the step; M is the last exit.
        stage: file of the graph that takes what the step before returned, or the images.
        head: file of the graph that takes the stage's output and returns logits; None where the stage's graph returns
            them as its last output: of the last exit, and where a stage and its head are one graph.
    """

    exit: int
    stage: str
    head: str | None


@dataclass(frozen=True, kw_only=True)
class StepGraphs:
    """The graphs of one step, before they are files; see `ExportedStep`."""

    exit: int
    stage: bytes
    head: bytes | None


@dataclass(frozen=True, kw_only=True)
class ExportedNetwork:
    """A personal network without its weights.

    Attributes:
        policy: the threshold and the exits in use.
        input_shape: (C, H, W) of an image, float32 in [0, 1].
        num_classes: K.
        class_names: K names, or empty.
        client_id: whose personal exits these are.
        round: the round that made them.
        backbone_fingerprint: fingerprint of the exported model's backbone.
        steps: in the order in which they run.
    """

    policy: ExitPolicy
    input_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    client_id: str
    round: int
    backbone_fingerprint: str
    steps: tuple[ExportedStep, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The graphs' files, in the order in which they run."""
        return tuple(name for step in self.steps for name in (step.stage, step.head) if name is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return what `policy.json` holds."""
        values = {"format": FORMAT, **asdict(self), "policy": self.policy.to_json()}
        # through JSON, so that the digest is of what a reader finds
        return with_digest(json.loads(json.dumps(values)))


def graph_name(part: str, exit: int, graph: bytes) -> str:
    """Return the file name of the stage or head that ends at an exit."""
    return f"{part}-{exit}-{hashlib.sha256(graph).hexdigest()[:12]}.onnx"


def read_exported(folder: Path) -> ExportedNetwork:
    """Return what `policy.json` describes.

    Raises:
        ExportError: the folder holds no exported network, or a damaged one.
    """
    path = folder / POLICY_FILE
    if not path.is_file():
        raise ExportError(f"{folder} has no {POLICY_FILE}: give a folder that `persephonee export --out` wrote.")
    try:
        return _from_dict(without_digest(read_json_object(path)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is damaged ({error}): export the network again.") from None


def read_graph(folder: Path, name: str) -> bytes:
    """Return a graph's bytes, compared with the hash in its name.

    Raises:
        ExportError: the file is missing, cut off or of another export.
    """
    path, digest = folder / name, _GRAPH_NAME.fullmatch(name)
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "no regular file")
        graph = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}): export the network again.") from None
    if digest is None or hashlib.sha256(graph).hexdigest()[:12] != digest[1]:
        raise ExportError(f"{folder / name} is not the graph that was exported: export the network again.")
    return graph


def own_graphs(folder: Path) -> set[str]:
    """Return the names of graphs that an export wrote: each has the digest of its content in its name."""
    found = [path.name for path in folder.iterdir() if _GRAPH_NAME.fullmatch(path.name)] if folder.is_dir() else []
    own = set()
    for name in found:
        with contextlib.suppress(ExportError):
            read_graph(folder, name)
            own.add(name)
    return own


def _from_dict(values: dict[str, Any]) -> ExportedNetwork:
    if values.pop("format") != FORMAT:
        raise ValueError(f"expected format {FORMAT}")
    policy = values.pop("policy")
    shape, steps = tuple(values.pop("input_shape")), tuple(ExportedStep(**step) for step in values.pop("steps"))
    exported = ExportedNetwork(
        policy=ExitPolicy.from_json(policy),
        input_shape=shape,
        class_names=tuple(values.pop("class_names")),
        steps=steps,
        **values,
    )
    if [step.exit for step in steps] != [*exported.policy.exits_in_use, exported.policy.num_exits] or len(shape) != 3:
        raise ValueError("its steps are not those of its policy")
    if any(Path(name).name != name for name in exported.files):
        raise ValueError("a path in place of a graph's name")
    return exported
