"""What `network.json` says of a model's graphs: their files, their digests, and the costs that PyTorch counted.

Stage i of the M+1 takes the images, or what stage i-1 returned as `features`, and returns `features` and the
`embedding` of its exit: what the exit's classifier takes. The last stage returns `logits`. Exits' classifiers are no
part of the graphs, since they are what a device learns.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from persephonee.multi_exit.costs import CostTable, ExitCost
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.graphs.checking import MAX_GRAPH_BYTES, check_graph
from persephonee.multi_exit.settings import NetworkSpec
from persephonee.multi_exit.storage import GRAPH_NAME, read_description

INPUT, FEATURES, EMBEDDING, LOGITS = "input", "features", "embedding", "logits"
INT8 = "int8"
"""What `network.json` calls the int8 graphs that stand beside the others, if there are any."""
MOST_MACS = 2**53
"""Of one image, and of parameters: no network comes near it, and sums of them stay exact."""


@dataclass(frozen=True, kw_only=True)
class StageGraph:
    """One stage's graph.

    Attributes:
        file: its name in the model's folder.
        sha256: of the file.
        shape: (C, H, W) of the features that it returns; empty for the last stage.
        width: D, length of the exit's embedding; 0 for the last stage.
    """

    file: str
    sha256: str
    shape: tuple[int, ...]
    width: int

    def read(self, folder: Path) -> bytes:
        """Return the graph in a model's folder, after comparing it with its digest and checking what it holds.

        Raises:
            ModelFileError: it is missing, damaged, another one, or refused.
        """
        path = folder / self.file
        try:
            if not path.is_file() or path.stat().st_size > MAX_GRAPH_BYTES:
                raise OSError("it is no regular file of a graph's size")
            graph = path.read_bytes()
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read ({error}): copy the model again.") from None
        if hashlib.sha256(graph).hexdigest() != self.sha256:
            raise ModelFileError(f"{path} is not the graph that network.json names: copy the model again.")
        check_graph(graph)
        return graph


@dataclass(frozen=True, kw_only=True)
class ModelGraphs:
    """A model's graphs.

    Attributes:
        stages: M+1 of them, in the order in which they run.
        costs: of the exits, as PyTorch counted them.
    """

    stages: tuple[StageGraph, ...]
    costs: CostTable

    def fingerprint(self, model: str) -> str:
        """Return SHA-256 over a model's fingerprint, the graphs' digests, and all that is said of them.

        Weights determine a model's fingerprint and not its graphs: another version of the exporter writes others. What
        runs on graphs is named by this one.
        """
        return hashlib.sha256(json.dumps([model, self.to_dict()], sort_keys=True).encode()).hexdigest()

    def described(self, model: str) -> dict[str, Any]:
        """Return what stands in the `network.json` of the model with this fingerprint."""
        return {**self.to_dict(), "fingerprint": self.fingerprint(model)}

    def to_dict(self) -> dict[str, Any]:
        """Return the stages and the costs as JSON has them."""
        return {"stages": [asdict(stage) for stage in self.stages], "costs": [asdict(c) for c in self.costs.exit_costs]}

    @classmethod
    def from_dict(cls, values: Any, num_exits: int) -> Self:
        """Return what `to_dict` made a dictionary of, which has been JSON since.

        Args:
            values: from a file that may be a stranger's.
            num_exits: M, early exits.

        Raises:
            ModelFileError: it says something else, or speaks of another number of exits.
        """
        try:
            stages = tuple(StageGraph(**{**stage, "shape": tuple(stage["shape"])}) for stage in values["stages"])
            costs = tuple(ExitCost(**row) for row in values["costs"])
            _check(stages, costs, num_exits)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(
                f"what network.json says of the model's graphs cannot be read ({error}): write them again with "
                "`persephonee export --model`."
            ) from None
        return cls(stages=stages, costs=CostTable(costs))


def int8_graphs(values: Mapping[str, Any], num_exits: int) -> ModelGraphs | None:
    """Return the int8 graphs that are described beside the others; None where there are none.

    Args:
        values: what `network.json` says of the model's graphs.
        num_exits: M, early exits.

    Raises:
        ModelFileError: what is said of them cannot be read.
    """
    if INT8 not in values:
        return None
    own = values[INT8] if isinstance(values[INT8], dict) else {}
    return ModelGraphs.from_dict({**own, "costs": values.get("costs")}, num_exits)


def all_stages(values: Mapping[str, Any], num_exits: int) -> tuple[StageGraph, ...]:
    """Return all graphs that are described, the int8 ones included; arguments and errors as of `int8_graphs`."""
    quantised = int8_graphs(values, num_exits)
    return (*ModelGraphs.from_dict(values, num_exits).stages, *(quantised.stages if quantised else ()))


def graphs_fingerprint(folder: Path) -> str:
    """Return the fingerprint of the graphs that the model in a folder carries; empty where it carries none.

    Raises:
        ModelFileError: the folder is no model folder, or what it says of its graphs cannot be read.
    """
    description = read_description(folder)
    if "graphs" not in description:
        return ""
    num_exits = NetworkSpec.from_json(json.dumps(description["spec"])).num_exits
    return ModelGraphs.from_dict(description["graphs"], num_exits).fingerprint(str(description["fingerprint"]))


def graph_file(stage: int, graph: bytes) -> str:
    """Return the file name of a stage's graph."""
    return f"graph-{stage}-{hashlib.sha256(graph).hexdigest()[:12]}.onnx"


def graphs_in(folder: Path) -> set[str]:
    """Return the names of the files in a folder that are graphs of ours."""
    return {path.name for path in folder.iterdir() if GRAPH_NAME.fullmatch(path.name)} if folder.is_dir() else set()


def _check(stages: tuple[StageGraph, ...], costs: tuple[ExitCost, ...], num_exits: int) -> None:
    if len(stages) != num_exits + 1 or len(costs) != num_exits + 1:
        raise ValueError(f"{len(stages)} graphs and {len(costs)} costs, expected {num_exits + 1}")
    for number, stage in enumerate(stages):
        is_last = number == num_exits
        numbers = (stage.width, *stage.shape)
        if not GRAPH_NAME.fullmatch(stage.file) or not re.fullmatch(r"[0-9a-f]{64}", stage.sha256):
            raise ValueError(f"a file or a digest of graph {number} is none")
        if not all(type(n) is int and 0 < n <= 2**24 for n in numbers if not is_last) or len(stage.shape) != (
            0 if is_last else 3
        ):
            raise ValueError(f"a size of graph {number} is out of its range")
    for row in costs:
        counts = (row.exit, row.macs, row.params, row.head_macs, row.head_params)
        is_count = all(type(n) is int and 0 <= n <= MOST_MACS for n in counts)
        if not is_count or type(row.share) not in (int, float) or not 0 < row.share <= 1 or type(row.at) is not str:
            raise ValueError("a cost is out of its range")
    if [row.exit for row in costs] != list(range(num_exits + 1)):
        raise ValueError("the exits of the costs are not in their order")
    if not costs[-1].macs:
        raise ValueError("the whole network costs nothing")
