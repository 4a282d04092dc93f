"""A federation in one process: a Grid that calls the ClientApp for each node, a tiny model, and a few users.

And users, with a model, for the verbs of the command line.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from persephonee.fl_app.client_side import client_app, client_node
from persephonee.fl_app.server_side import participants, server_app
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.wire import model_store
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, save_network
from tests.tiny_cnn import NAME, SOURCE

NUM_CLASSES, SIDE = 3, 16


@dataclass
class Node:
    """One node of the federation in this process."""

    node_config: dict
    node_id: int
    context: Context | None = None
    reply_with: object = None
    """Called with (message, reply) in place of sending the reply; may return an Error or another RecordDict."""
    claims: dict = field(default_factory=dict)
    """What it says in its status answer in place of the truth."""
    registered_as: str = ""
    """The name under which the operator registered the node's key."""
    received: list[Message] = field(default_factory=list)
    sent: list[RecordDict] = field(default_factory=list)


class InProcessGrid(Grid):
    """Calls the ClientApp for each message; what a node raises becomes an error as in Flower."""

    def __init__(self, nodes: list[Node], run_config: dict) -> None:
        self.nodes = {node.node_id: node for node in nodes}
        self.waiting: dict[str, Message] = {}
        for node in nodes:
            node.context = Context(1, node.node_id, node.node_config, RecordDict(), run_config)

    def set_run(self, run) -> None:
        pass

    @property
    def run(self):
        return None

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(self.nodes)

    def get_nodes(self):
        return [NodeInfo(node_id=node.node_id, name=node.registered_as) for node in self.nodes.values()]

    def push_messages(self, messages):
        sent = []
        for number, message in enumerate(messages):
            message_id = f"{message.metadata.message_type}-{number}"
            message.metadata.__dict__.update(_message_id=message_id, _run_id=1, _src_node_id=1)
            self.waiting[message_id] = message
            sent.append(message_id)
        return sent

    def pull_messages(self, message_ids):
        replies = (self._answer(self.waiting.pop(message_id)) for message_id in message_ids)
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message | None:
        node = self.nodes[message.metadata.dst_node_id]
        node.received.append(message)
        try:
            reply = client_app.app(message, node.context)
        except Exception as error:
            text = f"\x1b[36mray::actor\x1b[39m\nTraceback (most recent call last):\n  File x\n{error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text), reply_to=message)
        if node.claims and message.metadata.message_type == "query.status":
            for key, value in node.claims.items():
                reply.content["status"][key] = value
        if node.reply_with is not None and message.metadata.message_type == "train":
            content = node.reply_with(message, reply.content)
            if content is None:
                # no answer ever comes
                self.waiting[message.metadata.message_id] = message
                return None
            reply = Message(content, reply_to=message)
        if reply.has_content():
            # a copy: the server takes exits out of what it received
            node.sent.append(RecordDict(dict(reply.content)))
        return reply


@pytest.fixture
def draw_nothing(request, monkeypatch):
    """Draw no report, which takes seconds, except in a test that is marked `draws_report`."""
    if request.node.get_closest_marker("draws_report") is None:
        monkeypatch.setattr(server_app, "draw_report", lambda run: run / "report.html")


@pytest.fixture
def data(tmp_path) -> Path:
    """Six users with 40 samples each, u0 to u5, and u6 with 5."""
    rows = {"image": [], "writer_id": [], "character": []}
    for user in range(7):
        generator = np.random.default_rng(user)
        for _ in range(5 if user == 6 else 40):
            label = int(generator.integers(0, NUM_CLASSES))
            image = generator.integers(180, 256, (SIDE, SIDE), dtype=np.uint8)
            image[3 + 4 * label : 6 + 4 * label] = 20 + 10 * user
            rows["image"].append(image.tolist())
            rows["writer_id"].append(f"u{user}")
            rows["character"].append(label)
    pq.write_table(pa.table(rows), tmp_path / "users.parquet")
    return tmp_path / "users.parquet"


def save_model(folder: Path) -> Path:
    """Save a model with two early exits whose weights are random, and the same each time."""
    torch.manual_seed(0)
    network = build_network(
        NAME,
        num_exits=2,
        num_classes=NUM_CLASSES,
        input_size=SIDE,
        head="pooled",
        allowed=(SOURCE,),
        stem="stride-1",
    )
    save_network(network, folder, ModelMetadata(dataset="users"))
    return folder


@pytest.fixture
def model(tmp_path) -> Path:
    """A model with two early exits whose weights are random."""
    return save_model(tmp_path / "model")


@pytest.fixture
def settings(tmp_path, data, model) -> AppSettings:
    """A run of one short round over these users with this model."""
    config = {
        "dataset": "parquet",
        "data-path": str(data),
        "model": str(model),
        "run-dir": str(tmp_path / "run"),
        "sources": SOURCE,
        "epochs": 2,
        "batch-size": 8,
        "node-wait": 0.5,
        "round-deadline": 20.0,
    }
    return AppSettings.from_run_config(config)


@pytest.fixture(autouse=True)
def inside_a_run():
    """Messages can be made inside a run only."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


@pytest.fixture
def on_real_devices(monkeypatch):
    """Let the grid and the process be what they are: neither a simulation's."""
    monkeypatch.setattr(client_node, "in_simulation", lambda: False)
    monkeypatch.setattr(participants, "is_simulation", lambda grid: False)


@pytest.fixture(autouse=True)
def as_in_a_simulation(monkeypatch):
    """Let nodes be simulated where they are: where a test has any, its grid has no devices."""
    monkeypatch.setattr(client_node, "in_simulation", lambda: True)
    monkeypatch.setattr(participants, "is_simulation", _has_simulated_nodes)


def _has_simulated_nodes(grid) -> bool:
    return any("partition-id" in node.node_config for node in grid.nodes.values())


@pytest.fixture(autouse=True)
def no_model_in_memory():
    """Let each test begin as a new process would."""
    model_store._IN_MEMORY.clear()
    yield
    model_store._IN_MEMORY.clear()


@pytest.fixture
def simulated_nodes():
    """Return a function that makes n nodes of a simulation, with node ids in any order."""

    def make(count: int, ids: list[int] | None = None) -> list[Node]:
        ids = ids or [100 + i for i in range(count)]
        return [Node({"partition-id": i, "num-partitions": count}, ids[i]) for i in range(count)]

    return make


@pytest.fixture
def device_node(data, tmp_path):
    """Return a function that makes a device with a store of its own."""

    def make(client_id: str, node_id: int, **more) -> Node:
        store = tmp_path / f"device-{node_id}"
        own = {"client-id": client_id, "store": str(store), "dataset": "parquet", "data-path": str(data)}
        return Node({**own, "backbones": SOURCE, **more}, node_id)

    return make


@pytest.fixture
def make_grid():
    """Return a function that connects nodes under the settings of a run."""
    return lambda nodes, settings: InProcessGrid(nodes, settings.to_run_config())
