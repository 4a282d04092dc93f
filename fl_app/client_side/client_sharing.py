"""The client's side of sharing: take merged exits in, and let trained ones out where their owner permits it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flwr.app import RecordDict
from numpy.typing import NDArray

from persephonee.clients.personalisation.personalise import Personalisation
from persephonee.fl_app.errors import WireError
from persephonee.fl_app.settings.sharing_settings import PrivacySettings, SharingSettings
from persephonee.fl_app.wire import records as wire
from persephonee.fl_app.wire.differential_privacy import clipped, with_noise
from persephonee.fl_app.wire.exit_arrays import ExitLayout, exit_of
from persephonee.multi_exit.exit_weights import ExitWeights, as_arrays

if TYPE_CHECKING:
    from persephonee.multi_exit.graphs.network import GraphNetwork
    from persephonee.multi_exit.network import MultiExitNetwork


def received_exits(
    content: RecordDict,
    network: "MultiExitNetwork | GraphNetwork",
    layout: ExitLayout,
    sharing: SharingSettings,
    takes_exits: bool,
) -> ExitWeights | None:
    """Return the global exits of a federated round; None where the run shares none or this client takes none.

    Raises:
        WireError: the message holds something other than exits of this network, or exits where its owner lets none in.
    """
    if "exits" in content and not takes_exits:
        raise WireError("this device takes no exits in from others, since its owner does not let it share.")
    if not takes_exits:
        return None
    if "exits" in content:
        return layout.state(layout.from_record(content["exits"]), network.exit_state())
    return as_arrays(network.exit_state()) if sharing.share_exits else None


def attach_exits(
    reply: RecordDict,
    done: Personalisation,
    start: Mapping[str, NDArray[Any]],
    layout: ExitLayout,
    permitted: bool,
    privacy: PrivacySettings,
) -> None:
    """Add to the reply what this client shares, and say what became of the request.

    What training found is shared, not what the guard made of it: personal exits of an earlier round would pull the
    merged ones back. An exit that training made worse on the user's own calibration samples than the merged exit that
    it began with is left out, so that nobody learns from it. With noise all of them are sent, since which are left out
    would tell something that no noise covers.
    """
    head = reply.config_records["report"]
    if not permitted:
        head["sharing"] = wire.NOT_PERMITTED
        return
    arrays = layout.arrays(done.trained)
    if privacy.is_on and privacy.dp_noise_at == "clients":
        arrays = with_noise(clipped(arrays, layout.arrays(start), privacy), privacy)
    elif not privacy.is_on:
        arrays = {name: array for name, array in arrays.items() if exit_of(name) not in done.worse}
    if not arrays:
        head["sharing"] = f"{wire.HELD_BACK}: training improved no exit"
        return
    try:
        reply["exits"] = layout.to_record(arrays)
    except WireError as error:
        head["sharing"] = f"{wire.HELD_BACK}: {error}"
        return
    head["sharing"] = wire.SHARED
