"""The global model on a client: one copy per process, one folder per fingerprint on disk, never a pickle."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fl_app.errors import WireError
from multi_exit.backbones import DEFAULT_SOURCES
from multi_exit.building import rebuild_network
from multi_exit.errors import ModelFileError
from multi_exit.network import MultiExitNetwork, NetworkSpec
from multi_exit.storage import ModelMetadata, load_network, load_tensors, read_description, save_network

# A simulation's actors live long and play many clients, who all ask for the same model: building it once saves the
# tracing. It is shared, so nobody may change it; `ModelStore.find` hands out nothing else than this object.
_IN_MEMORY: dict[str, MultiExitNetwork] = {}


class ModelStore:
    """The models that a client has.

    Args:
        folder: holds one model folder per fingerprint; None keeps received models in this process only.
        seen: a model folder that is there already, such as the one that a simulation was started with.
        sources: where backbones may come from, by this client's own configuration.
    """

    def __init__(
        self, folder: Path | None, seen: Path | None = None, sources: tuple[str, ...] = DEFAULT_SOURCES
    ) -> None:
        self._folder = folder
        self._seen = seen
        self._sources = sources

    def holds(self, fingerprint: str) -> bool:
        """Return whether the model lies on disk; a copy in memory may be gone with the next process."""
        return self._place(fingerprint) is not None

    def find(self, fingerprint: str) -> MultiExitNetwork | None:
        """Return the model, which the caller must copy before changing it, or None.

        Raises:
            MultiExitError: the folder is damaged, or its backbone is not allowed here.
        """
        if fingerprint not in _IN_MEMORY:
            place = self._place(fingerprint)
            if place is None:
                return None
            _keep(fingerprint, load_network(place, self._sources)[0])
        return _IN_MEMORY[fingerprint]

    def receive(self, fingerprint: str, content: RecordDict) -> MultiExitNetwork:
        """Build the model that came with a message, keep it, and return it.

        Raises:
            WireError: what came is not the model that the fingerprint names.
            MultiExitError: its backbone is not allowed here, or its arrays do not fit.
        """
        spec = NetworkSpec.from_json(str(content.config_records["spec"]["json"]))
        network = rebuild_network(spec, self._sources)
        arrays = {name: torch.from_numpy(a.numpy()) for name, a in content.array_records["model"].items()}
        load_tensors(network, arrays, "the model that was received")
        if network.fingerprint != fingerprint:
            raise WireError("the model that was received is not the one that the request names; send it again.")
        if self._folder is not None:
            # without metadata: whose data trained the model is none of a device's business
            save_network(network, self._folder / fingerprint, ModelMetadata())
        return _keep(fingerprint, network)

    def _place(self, fingerprint: str) -> Path | None:
        own = () if self._folder is None else (self._folder / fingerprint,)
        seen = () if self._seen is None else (self._seen,)
        return next((place for place in (*own, *seen) if _fingerprint_of(place) == fingerprint), None)


def model_records(network: MultiExitNetwork) -> dict[str, ArrayRecord | ConfigRecord]:
    """Return the records that carry a model to a client that lacks it."""
    return {
        "model": ArrayRecord(torch_state_dict=network.state_dict()),
        "spec": ConfigRecord({"json": network.spec.to_json()}),
    }


def _keep(fingerprint: str, network: MultiExitNetwork) -> MultiExitNetwork:
    _IN_MEMORY.clear()
    _IN_MEMORY[fingerprint] = network
    return network


def _fingerprint_of(folder: Path) -> str | None:
    try:
        return str(read_description(folder)["fingerprint"])
    except ModelFileError:
        return None
