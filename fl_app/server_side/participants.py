"""Who takes part in a run: wait for nodes, ask each device who it is, and decide whom simulated nodes play."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from persephonee.data_partitions.user_ids import shown
from persephonee.fl_app.errors import RunFailedError, WireError
from persephonee.fl_app.server_side.messaging import Reply, is_simulation, send_and_receive
from persephonee.fl_app.settings.app_settings import RoundSettings
from persephonee.fl_app.wire import records as wire

log = logging.getLogger("persephonee.server")


@dataclass(kw_only=True)
class Client:
    """A client that takes part, and the bytes exchanged with it since the last round ended."""

    node_id: int
    client_id: str
    is_simulated: bool
    has_model: bool
    needs_graphs: bool
    """Whether it has no PyTorch, and takes the model with its graphs."""
    takes_exits: bool
    """Whether merged exits may be sent to it."""
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, kw_only=True)
class Participants:
    """Who takes part in a run."""

    clients: tuple[Client, ...]
    """Sorted by client id."""
    left_out: dict[str, str]
    """Status of each client that may not take part, by client id."""
    nameless: int
    """Nodes that did not say who they are."""


def enrol(
    grid: Grid, settings: RoundSettings, request: RecordDict, users: Callable[[int], Sequence[str]]
) -> Participants:
    """Wait for nodes, and ask who they are; nodes of a simulation are not asked, since the server says whom they play.

    Args:
        grid: Flower's connection to the nodes.
        settings: how many clients are wanted, and how long to wait for them.
        request: what the status query asks, naming model and code.
        users: given the number of simulated nodes that are to take part, names whom each of them plays.

    Raises:
        RunFailedError: no node came, or none said who it is.
    """
    nodes = _wait_for_nodes(grid, settings)
    if is_simulation(grid):
        return _playing(nodes, users(min(len(nodes), settings.clients or len(nodes))))
    messages = [Message(request, node, wire.STATUS_QUERY, ttl=settings.node_wait) for node in nodes]
    devices: list[Client] = []
    causes: list[str] = []
    names = registered_names(grid)
    misnamed: dict[str, str] = {}
    for answer in send_and_receive(grid, messages, settings.node_wait):
        try:
            status = _status(answer)
            if complaint := _false_name(status["client-id"], names.get(answer.node_id, ""), names.values()):
                if answer.node_id in names:
                    misnamed[names[answer.node_id]] = f"{wire.REFUSED}: {complaint}"
                raise WireError(complaint)
        except WireError as error:
            causes.append(str(error).rstrip("."))
            continue
        devices.append(_client(answer, status, wire.content_bytes(request)))
    if not devices:
        raise RunFailedError(f"None of {len(nodes)} nodes said who it is; the first: {causes[0]}.")
    for cause in sorted(set(causes)):
        log.warning("%d of %d nodes cannot take part: %s.", causes.count(cause), len(nodes), cause)
    found = _participants(devices, settings.clients, nameless=len(causes) - len(misnamed))
    return replace(found, left_out={**found.left_out, **misnamed})


def _playing(nodes: Sequence[int], users: Sequence[str]) -> Participants:
    """Return a simulation's clients: each node plays one user, whichever it is, and sees the model as the server does.

    A node that lacks the model says so when it is first asked to train, and is sent it.
    """
    clients = [
        Client(node_id=node, client_id=user, is_simulated=True, has_model=True, needs_graphs=False, takes_exits=True)
        for node, user in zip(nodes, users, strict=False)
    ]
    return _participants(clients, len(clients), nameless=0)


def registered_names(grid: Grid) -> dict[int, str]:
    """Return the names under which the operator registered nodes' public keys, by node; without those that have none.

    `flwr supernode register KEY.pub --name ID` binds an id to a key: the SuperLink knows a node by the signatures of
    that key, whatever the node says of itself.
    """
    return {node.node_id: node.name for node in grid.get_nodes() if node.name}


def _false_name(said: str, registered: str, all_registered: Iterable[str]) -> str:
    """Return what is wrong with the id that a node says, given the name of its key; nothing if it fits."""
    if registered and said != registered:
        return f"its key is registered as {shown(registered)}, and it says that it is {shown(said)}"
    if not registered and said in all_registered:
        return f"it says that it is {shown(said)}, which another key is registered as"
    return ""


def _wait_for_nodes(grid: Grid, settings: RoundSettings) -> list[int]:
    wanted = settings.clients or 1
    end = time.monotonic() + settings.node_wait
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < wanted and time.monotonic() < end:
        time.sleep(0.2)
        nodes = sorted(grid.get_node_ids())
    if not nodes:
        raise RunFailedError(f"No node came within {settings.node_wait:g} s; are SuperNodes connected?")
    if len(nodes) < wanted:
        log.warning("%d nodes came within %g s, %d were wanted.", len(nodes), settings.node_wait, wanted)
    return nodes


def _status(answer: Reply) -> dict[str, Any]:
    if answer.content is None:
        raise WireError(answer.cause)
    status = dict(wire.check_status(answer.content))
    if status["partition-id"] >= 0:
        # to a simulated node the server opens its own data
        raise WireError("it says that it is simulated, and it is not")
    if not status["client-id"].strip():
        raise WireError("it gives no id")
    return status


def _client(answer: Reply, status: dict[str, Any], bytes_down: int) -> Client:
    return Client(
        node_id=answer.node_id,
        client_id=status["client-id"],
        is_simulated=False,
        has_model=status["model-held"],
        needs_graphs=status["needs-graphs"],
        takes_exits=status["sharing-allowed"],
        bytes_up=wire.content_bytes(answer.content) if answer.content is not None else 0,
        bytes_down=bytes_down,
    )


def _participants(clients: Sequence[Client], wanted: int, nameless: int) -> Participants:
    """Sort the clients, and leave out those whose id another node has too: their stores would overwrite each other."""
    ids = [client.client_id for client in clients]
    twins = sorted({name for name in ids if ids.count(name) > 1})
    alone = sorted((c for c in clients if c.client_id not in twins), key=lambda client: client.client_id)
    left_out = {name: f"{wire.REFUSED}: {ids.count(name)} nodes say that they are this client" for name in twins}
    return Participants(clients=tuple(alone[: wanted or len(alone)]), left_out=left_out, nameless=nameless)
