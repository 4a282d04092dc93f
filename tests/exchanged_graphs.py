"""A model whose graphs are others under the same weights."""

import hashlib
from pathlib import Path

import onnx

from persephonee.multi_exit.checked_json import write_with_digest
from persephonee.multi_exit.graphs.description import graph_file
from persephonee.multi_exit.storage import read_description


def exchange_a_graph(folder: Path) -> None:
    """Give a model one other graph, and nothing else: the weights and the fingerprint stay."""
    description = read_description(folder)
    stage = description["graphs"]["stages"][0]
    model = onnx.load(folder / stage["file"])
    model.producer_version = "another"
    data = model.SerializeToString()
    stage.update(file=graph_file(0, data), sha256=hashlib.sha256(data).hexdigest())
    (folder / stage["file"]).write_bytes(data)
    write_with_digest(folder / "network.json", description)
