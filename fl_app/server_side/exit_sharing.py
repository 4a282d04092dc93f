"""The server's side of sharing: the global exits, what clients are sent of them, and what they send back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from persephonee.clients.personalisation.reports import PersonalisationReport
from persephonee.fl_app.errors import AppError, WireError
from persephonee.fl_app.server_side.aggregation import Contribution, Merger
from persephonee.fl_app.server_side.client_bounds import array_norms
from persephonee.fl_app.settings.sharing_settings import PrivacySettings, SharingSettings
from persephonee.fl_app.wire import records as wire
from persephonee.fl_app.wire.exit_arrays import CLASSIFIER, PARAMETERS, ExitLayout, exit_of
from persephonee.multi_exit.exit_weights import ExitWeights, as_arrays
from persephonee.multi_exit.network import MultiExitNetwork

Row = dict[str, Any]


class ExitSharing:
    """The exits of a federation whose clients share them.

    Args:
        network: the global model that the run begins with; it is left as it is.
        settings: what is shared and how it is merged.
        privacy: what noise covers it.
        secret: that the server's noise follows from.
        allowed: the modules from which a strategy of one's own may come.
        classifiers_alone: whether the clients change nothing of an exit but its classifier; nothing else travels then.
    """

    def __init__(
        self,
        network: MultiExitNetwork,
        settings: SharingSettings,
        privacy: PrivacySettings,
        secret: str,
        allowed: tuple[str, ...] = (),
        *,
        classifiers_alone: bool = False,
    ) -> None:
        self._base = as_arrays(network.exit_state())
        self._layout = ExitLayout.of(network, settings.share_dtype, classifiers_alone=classifiers_alone)
        self._privacy = privacy
        self._secret = secret
        self._exits = self._layout.arrays(self._base)
        # what bounds a client is the whole exit, whatever part of it travels
        norms = array_norms(ExitLayout.of(network, settings.share_dtype).arrays(self._base))
        self._merger = Merger(
            settings, privacy, {n: norms[n.replace(CLASSIFIER, PARAMETERS)] for n in self._exits}, allowed
        )
        self._record: ArrayRecord | None = None
        self.contributors: tuple[str, ...] = ()
        """Clients whose exits were ever merged, sorted."""
        self.releases = 0
        """Rounds that spent noise: they merged exits or, where the noise is the clients', asked for them."""

    def spends_by_asking(self) -> bool:
        """Count a release if clients with noise of their own are about to be asked, and return whether it was counted.

        What they send is spent once it has left them, whether it is merged or not; asked again, they draw new noise.
        """
        at_clients = self._privacy.is_on and self._privacy.dp_noise_at == "clients"
        self.releases += at_clients
        return at_clients

    def records(self) -> dict[str, ArrayRecord]:
        """Return what a client is sent of the global exits: nothing while they are those of the model."""
        return {} if self._record is None else {"exits": self._record}

    def exit_state(self) -> ExitWeights:
        """Return the global exits, as `MultiExitNetwork.load_exit_state` takes them."""
        return self._layout.state(self._exits, self._base)

    def take(
        self, client_id: str, content: RecordDict, report: PersonalisationReport
    ) -> tuple[Contribution | None, str]:
        """Return what a client shared, if anything that may be merged, and what became of the request, in words."""
        said = str(content.config_records["report"]["sharing"])
        if "exits" not in content:
            return None, said or wire.NOT_PERMITTED
        try:
            # taken out of the message: the bytes of a thousand clients need not stay until the round ends
            exits = self._layout.from_record(content.pop("exits"))
        except WireError as error:
            return None, f"{wire.REFUSED}: {error}"
        return Contribution(client_id=client_id, exits=exits, examples=report.num_train), wire.SHARED

    def merge(self, round_number: int, shared: Sequence[Contribution]) -> dict[int, int]:
        """Make the next global exits of what was shared, and return how many clients each was merged over."""
        in_order = sorted(shared, key=lambda contribution: contribution.client_id)
        self._exits, counts = self._merger.merge(round_number, self._exits, in_order, self._secret)
        is_merged = any(counts.values())
        self.releases += is_merged and self._privacy.dp_noise_at == "server"
        if is_merged:
            self._record = self._layout.to_record(self._exits)
            self.contributors = tuple(sorted({*self.contributors, *(c.client_id for c in in_order)}))
        return counts

    def rows(self, number: int, outcomes: Mapping[str, str], shared: Sequence[Contribution]) -> list[Row]:
        """Return the rows of sharing.parquet of one round: what became of the request, client by client."""
        of = {contribution.client_id: contribution for contribution in shared}
        return [
            {
                "round": number,
                "client_id": client_id,
                "outcome": outcome,
                "exits": sorted({exit_of(name) for name in of[client_id].exits}) if client_id in of else [],
                "examples": of[client_id].examples if client_id in of else None,
            }
            for client_id, outcome in outcomes.items()
        ]

    def state(self) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Return all that the next rounds depend on: arrays, and what JSON can hold."""
        arrays = {f"exits/{name}": array for name, array in self._exits.items()}
        arrays.update({f"moments/{name}": array for name, array in self._merger.state().items()})
        return arrays, {"contributors": self.contributors, "releases": self.releases}

    def load_state(self, arrays: Mapping[str, NDArray[np.float32]], info: Mapping[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            AppError: a former version merged whole exits where their classifiers alone are merged now.
        """
        missing = [name for name in self._exits if f"exits/{name}" not in arrays]
        if missing:
            raise AppError(
                f"the run's checkpoint holds other parts of the exits than {missing[0]}, as a former version merged "
                "them: go on with that version, or begin another run."
            )
        self._exits = {name: arrays[f"exits/{name}"] for name in self._exits}
        moments = {k.removeprefix("moments/"): v for k, v in arrays.items() if k.startswith("moments/")}
        self._merger.load_state(moments)
        self.contributors = tuple(info["contributors"])
        self.releases = info["releases"]
        if self.contributors:
            self._record = self._layout.to_record(self._exits)
