"""The client's side: one message per round in, one report out; everything else stays on the device.

`train` runs the on-device pipeline (clients/personalisation.py) for one round; `query.status` says who this client is
and which model it has. Whatever goes wrong becomes a status in the reply, in a sentence, so that the server can count
and name it.
"""

import logging

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.errors import ClientError
from clients.exit_store import ExitStore
from clients.personalisation import personalise
from data_partitions.errors import DataError, UserTooSmallError
from data_partitions.user_splits import split_samples
from fl_app import wire
from fl_app.client_node import ClientNode
from fl_app.code_fingerprint import code_fingerprint
from fl_app.errors import AppError, WireError
from fl_app.settings import AppSettings
from multi_exit.errors import MultiExitError

log = logging.getLogger("persephonee.client")

app = ClientApp()


@app.query("status")
def status(message: Message, context: Context) -> Message:
    """Answer who this client is, and whether it has the model that the request names."""
    request = wire.read_request(message.content)
    node = _node(context)
    reply = wire.make_status(
        client_id=node.client_id,
        partition_id=node.partition_id,
        code=code_fingerprint(),
        model_held=node.models().holds(str(request["model"])),
        sharing_allowed=node.sharing_allowed,
    )
    wire.check_status(reply)
    return Message(reply, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Personalise for one round and report; a client that cannot says why."""
    user = ""
    try:
        node = _node(context)
        request = wire.read_request(message.content)
        user = node.user(str(request["user"]))
        reply = _personalise(message.content, context, node, user)
    except UserTooSmallError as error:
        reply = wire.refusal(user, f"{wire.TOO_SMALL}: {error}")
    except (ClientError, MultiExitError, AppError) as error:
        reply = wire.refusal(user, f"{wire.REFUSED}: {error}")
    except DataError as error:
        reply = wire.refusal(user, f"{wire.FAILED}: {error}")
    except Exception as error:
        # an unforeseen error's text may hold the user's data: its kind leaves the device, the rest stays in its log
        log.exception("Personalisation failed.")
        reply = wire.refusal(user, f"{wire.FAILED}: {type(error).__name__}, see the client's own log")
    return Message(_checked(reply, user), reply_to=message)


def _personalise(content: RecordDict, context: Context, node: ClientNode, user: str) -> RecordDict:
    request = wire.read_request(content)
    if request["code"] != code_fingerprint():
        server, own = str(request["code"])[:8], code_fingerprint()[:8]
        return wire.refusal(
            user, f"{wire.REFUSED}: the server runs other code ({server}) than this client ({own}); install the same."
        )
    settings = AppSettings.from_run_config(context.run_config)
    models, fingerprint = node.models(), str(request["model"])
    network = models.receive(fingerprint, content) if "model" in content else models.find(fingerprint)
    if network is None:
        return wire.refusal(user, f"{wire.MODEL_MISSING}: {fingerprint[:12]}")
    if node.is_simulated:
        # the simulation runs one client per core; torch would start a thread per core in each of them
        torch.set_num_threads(1)
    samples = node.samples(user, network)
    done = personalise(
        network,
        samples,
        split_samples(samples, settings.split, settings.seed),
        settings.personalisation,
        store=ExitStore(node.store(user)),
        round_number=int(request["round"]),
        seed=settings.seed,
    )
    return wire.to_reply(done.report)


def _checked(reply: RecordDict, user: str) -> RecordDict:
    """Let nothing leave but what the wire records allow: the last step before sending."""
    try:
        wire.check_reply(reply)
    except WireError:
        log.exception("The reply was held back.")
        return wire.refusal(user, f"{wire.REFUSED}: the reply held something that may not travel")
    return reply


def _node(context: Context) -> ClientNode:
    settings = AppSettings.from_run_config(context.run_config)
    return ClientNode.of(context.node_config, settings, context.run_id)
