"""The client's side: one message per round in, one report out; everything else stays on the device.

`train` runs the on-device pipeline (clients/personalisation/personalise.py) for one round; `evaluate` measures exits
on a user who
takes no part; `query.status` says who this client is and which model it has. Exits leave where the run asks for them
and the device's owner permits it (client_sharing.py). Whatever goes wrong becomes a status in the reply, in a
sentence, so that the server can count and name it (refusals.py).
"""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from persephonee.clients.personalisation.evaluation import evaluate_exits
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.features import Features, backbone_fingerprint, runs_on_graphs
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.reports import PersonalisationReport
from persephonee.clients.personalisation.risk.risk_pools import RiskPool
from persephonee.clients.personalisation.risk.second_choice import choose_again
from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, split_samples
from persephonee.fl_app.client_side.client_node import ClientNode
from persephonee.fl_app.client_side.client_sharing import attach_exits, received_exits
from persephonee.fl_app.client_side.coarse_report import coarse_report
from persephonee.fl_app.client_side.kept_features import kept_features
from persephonee.fl_app.client_side.refusals import refusal_of, words_for
from persephonee.fl_app.errors import AppError, WireError
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.settings.watched_run import log_handler
from persephonee.fl_app.wire import records as wire
from persephonee.fl_app.wire.code_fingerprint import code_fingerprint
from persephonee.fl_app.wire.exit_arrays import ExitLayout
from persephonee.fl_app.wire.limits import FEWEST_TEST_SAMPLES
from persephonee.fl_app.wire.risk_records import curve_record, pool_of
from persephonee.multi_exit.exit_weights import ExitWeights, as_arrays

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network

log = logging.getLogger("persephonee.client")

app = ClientApp()


@app.query("status")
def status(message: Message, context: Context) -> Message:
    """Answer who this client is, and whether it has the model that the request names."""
    try:
        request = wire.read_request(message.content)
        node = _node(context)
        reply = wire.make_status(
            client_id=node.client_id,
            partition_id=node.partition_id,
            code=code_fingerprint(),
            model_held=node.models().holds(str(request["model"]), str(request["graphs"])),
            sharing_allowed=node.sharing_allowed,
            needs_graphs=node.models().needs_graphs,
        )
        wire.check_status(reply)
    except Exception as error:
        # Flower sends the text of what is raised here
        raise AppError(words_for(error)) from None
    return Message(reply, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Personalise for one round and report; a client that cannot says why."""
    return Message(_answer(message.content, context, _personalise), reply_to=message)


@app.train("policy")
def policy(message: Message, context: Context) -> Message:
    """Choose the policy of the round that is over again, with the pool of all clients' risk curves, and report."""
    return Message(_answer(message.content, context, _choose), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the global exits on a user who takes no part, and personal ones if asked; nothing is kept."""
    return Message(_answer(message.content, context, _evaluate), reply_to=message)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What a message asks of a client, and what the client has for it."""

    request: Mapping[str, Any]
    settings: AppSettings
    node: ClientNode
    user: str
    seed: int
    """The run's in a simulation; a device's is its own."""
    network: "Network"
    layout: ExitLayout
    exits: ExitWeights | None
    """The global exits of a federated round; None where the run shares none or the device takes none."""
    pool: RiskPool | None
    """Of all clients' risk curves, in a message that asks for the policy."""
    samples: UserSamples
    split: SampleSplit
    store: ExitStore

    def kept_features(self) -> Features | None:
        """Return the features of a simulated user that are kept between messages; None where a round makes its own.

        A device keeps nothing of its user's images.
        """
        if not self.node.is_simulated:
            return None
        self.network.freeze_backbone()
        network, own = self.network, self.network.exit_state()
        stored = self.store.load(backbone_fingerprint(network), own, self.user, graphs=network.graphs_fingerprint)
        exits = [one for one in (self.exits, stored and stored.exit_weights) if one]
        model = str(self.request["model"])
        return kept_features(self.store.folder, self.network, model, self.samples, self.settings.personalisation, exits)


def _answer(content: RecordDict, context: Context, does: Callable[[_Task], RecordDict]) -> RecordDict:
    """Do what a message asks, say why where that cannot be done, and let nothing leave but what is allowed."""
    user, layout, curve_allowed = "", None, False
    try:
        node = _node(context)
        if node.is_simulated:
            _log_to_watched_file()
        request = wire.read_request(content)
        user = node.user(str(request["user"]))
        task = _task(does.__name__, request, content, context, node, user)
        if isinstance(task, RecordDict):
            return _checked(task, user, None)
        layout = task.layout if task.settings.sharing.share_exits and node.permits_sharing(user) else None
        curve_allowed = does is _personalise and task.settings.pools_curves and node.permits_curve
        reply = does(task)
    except Exception as error:
        reply = wire.refusal(user, refusal_of(error))
    return _checked(reply, user, layout, curve_allowed)


def _task(
    kind: str, request: Mapping[str, Any], content: RecordDict, context: Context, node: ClientNode, user: str
) -> _Task | RecordDict:
    """Gather what a task needs; a client that lacks the code or the model answers so."""
    if request["code"] != code_fingerprint():
        server, own = str(request["code"])[:8], code_fingerprint()[:8]
        return wire.refusal(
            user, f"{wire.REFUSED}: the server runs other code ({server}) than this client ({own}); install the same."
        )
    settings = AppSettings.from_run_config(context.run_config)
    models, fingerprint, graphs = node.models(), str(request["model"]), str(request["graphs"])
    # what is there already stays: nobody replaces a model that this device answers for
    arrives = "model" in content and not models.holds(fingerprint, graphs)
    model = models.receive(fingerprint, content, graphs) if arrives else models.find(fingerprint, graphs)
    if model is None:
        return wire.refusal(user, f"{wire.MODEL_MISSING}: {fingerprint[:12]}")
    network, metadata = model
    if not runs_on_graphs(network):
        if node.is_simulated:
            # the simulation runs one client per core; torch would start a thread per core in each of them
            import torch

            torch.set_num_threads(1)
        network.to(node.compute.torch_device())
    layout = ExitLayout.of(
        network,
        settings.sharing.share_dtype,
        classifiers_alone=settings.personalisation.learns_classifiers_alone,
    )
    exits = received_exits(content, network, layout, settings.sharing, node.takes_exits)
    seed, division = settings.seed, settings.split
    if not node.is_simulated:
        run, number = str(request["run"]), int(request["round"])
        seed = node.asked().admit(kind, run, number, fingerprint, network.graphs_fingerprint)
        # neither is the server's to choose: another division would tell two means apart by a few samples
        division = SplitSettings(labels=division.labels)
    samples = node.samples(user, network, metadata)
    # in evaluations too: merged exits may have learned from what this user shared in an earlier run
    store = ExitStore(node.store(user))
    split = split_samples(samples, division, seed, store.known_parts())
    if 0 < len(split.test) < FEWEST_TEST_SAMPLES:
        needed = f"the figures need {FEWEST_TEST_SAMPLES} test samples, got {len(split.test)}"
        raise UserTooSmallError(user, len(samples), needed)
    return _Task(
        request=request,
        settings=settings,
        node=node,
        user=user,
        seed=seed,
        network=network,
        layout=layout,
        exits=exits,
        pool=pool_of(content["pool"], network.num_exits) if "pool" in content else None,
        samples=samples,
        split=split,
        store=store,
    )


def _personalise(task: _Task) -> RecordDict:
    done = personalise(
        task.network,
        task.samples,
        task.split,
        task.settings.personalisation,
        store=task.store,
        round_number=int(task.request["round"]),
        seed=task.seed,
        global_exit_weights=task.exits,
        run=str(task.request["run"]),
        features=task.kept_features(),
    )
    reply = _to_reply(task, done.report)
    if task.settings.pools_curves and task.node.permits_curve and done.choice.curve is not None:
        curve = curve_record(done.choice.curve)
        if curve is not None:
            reply["curve"] = curve
    if task.settings.sharing.share_exits:
        start = task.exits or as_arrays(task.network.exit_state())
        permitted = task.node.permits_sharing(task.user)
        attach_exits(reply, done, start, task.layout, permitted, task.settings.privacy)
    return reply


def _choose(task: _Task) -> RecordDict:
    if task.pool is None:
        raise WireError("a policy is chosen again with a pool of risk curves, which is missing.")
    report = choose_again(
        task.network,
        task.samples,
        task.split,
        task.settings.personalisation,
        task.store,
        task.pool,
        run=str(task.request["run"]),
        round_number=int(task.request["round"]),
        features=task.kept_features(),
    )
    return _to_reply(task, report)


def _evaluate(task: _Task) -> RecordDict:
    number, exits = int(task.request["round"]), task.exits or as_arrays(task.network.exit_state())
    if task.request["personalise"]:
        settings, seed = task.settings.personalisation, task.seed
        done = personalise(
            task.network, task.samples, task.split, settings, round_number=number, seed=seed, global_exit_weights=exits
        )
        return _to_reply(task, done.report)
    task.network.freeze_backbone()
    test = task.split.test
    rows = evaluate_exits(task.network, exits, task.samples.images[test], task.samples.labels[test])
    report = replace(wire.no_report(task.user, wire.OK), round=number, num_test=len(test), exit_metrics=rows)
    return _to_reply(task, report)


def _to_reply(task: _Task, report: PersonalisationReport) -> RecordDict:
    # in a simulation the server's owner has the data anyway, and its tables are to be exact
    return wire.to_reply(report if task.node.is_simulated else coarse_report(report))


def _checked(reply: RecordDict, user: str, layout: ExitLayout | None, curve_allowed: bool = False) -> RecordDict:
    """Let nothing leave but what the wire records allow: the last step before sending.

    Args:
        reply: what is about to leave.
        user: whose it is.
        layout: of the exits that may leave; None where the run asks for none or the owner permits none.
        curve_allowed: whether the owner lets the user's risk curve leave.
    """
    try:
        wire.check_reply(reply, exits_allowed=layout is not None, curve_allowed=curve_allowed)
        if layout is not None and "exits" in reply:
            layout.from_record(reply["exits"])
    except WireError:
        log.exception("The reply was held back.")
        return wire.refusal(user, f"{wire.REFUSED}: the reply held something that may not travel")
    return reply


def _node(context: Context) -> ClientNode:
    settings = AppSettings.from_run_config(context.run_config)
    return ClientNode.of(context.node_config, settings, context.run_id)


@functools.cache
def _log_to_watched_file() -> None:
    """Let what a simulated client says go straight to the run's log; once per process."""
    handler = log_handler()
    if handler is not None:
        handler.setLevel(logging.WARNING)
        log.addHandler(handler)
