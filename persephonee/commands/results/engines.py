"""What answers images for `evaluate` and `predict`: a model, a device's store, or an exported network.

An exported network needs ONNX Runtime and no PyTorch, so that nothing here imports PyTorch before a model is named.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.options import source_names

if TYPE_CHECKING:
    from persephonee.clients.inference.engine import Engine
    from persephonee.data_partitions.known_parts import KnownParts
    from persephonee.multi_exit.network import MultiExitNetwork
    from persephonee.multi_exit.storage import ModelMetadata

DEFAULT_THRESHOLD = 0.9

Model = Annotated[Path | None, typer.Option(help="Folder of the global model.")]
Store = Annotated[
    Path | None, typer.Option(help="Folder of a device of this model: its personal exits and its policy answer.")
]
Exported = Annotated[
    Path | None, typer.Option(help="Folder that `export --out` wrote, in place of a model; needs no PyTorch.")
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help=f"Confidence above which a sample leaves; the store's by default, and {DEFAULT_THRESHOLD:g} without one.",
        min=0,
        max=1,
    ),
]


@dataclass(frozen=True, kw_only=True)
class OpenedEngine:
    """An engine, and what is known of it."""

    engine: "Engine"
    class_names: tuple[str, ...]
    name: str
    """What a table calls it."""
    client_id: str | None = None
    """Whose personal exits these are."""
    model: "tuple[MultiExitNetwork, ModelMetadata] | None" = None
    """None for an exported network, of which no costs are known."""
    known: "Callable[[], KnownParts] | None" = None
    """What the user's samples have served for, where a store says it."""

    @property
    def leaving_macs(self) -> tuple[int, ...] | None:
        """What a sample costs that leaves at each exit in use and at the last one."""
        return self.model[0].costs.leaving_macs(self.engine.policy.exits_in_use) if self.model else None

    def class_name(self, label: int) -> str:
        """Return a class's name, or its number where it has none."""
        return self.class_names[label] if self.class_names else str(label)


def open_engine(
    model: Path | None, store: Path | None, exported: Path | None, threshold: float | None, sources: str
) -> OpenedEngine:
    """Open what the options name.

    Raises:
        typer.BadParameter: they do not go together.
        ClientError, MultiExitError: a folder cannot be used, and why.
    """
    if (model is None) == (exported is None):
        raise typer.BadParameter("expected either --model MODEL, with --store DIR or without, or --exported DIR.")
    if exported is not None:
        if store is not None or threshold is not None:
            raise typer.BadParameter("--exported has its own exits and threshold: leave out --store and --threshold.")
        return _open_exported(exported)
    assert model is not None  # one of the two is there
    return _open_model(model, store, threshold, source_names(sources))


def _open_exported(folder: Path) -> OpenedEngine:
    from persephonee.clients.inference.onnx_engine import OnnxEngine

    engine = OnnxEngine(folder)
    found = engine.exported
    return OpenedEngine(
        engine=engine,
        class_names=found.class_names,
        name=f"{folder} of user {found.client_id}",
        client_id=found.client_id,
    )


def _open_model(model: Path, store: Path | None, threshold: float | None, sources: tuple[str, ...]) -> OpenedEngine:
    from persephonee.clients.inference.inference_engine import InferenceEngine
    from persephonee.clients.personalisation.exit_store import ExitStore
    from persephonee.clients.personalisation.policy import ExitPolicy
    from persephonee.fl_app.errors import AppError
    from persephonee.multi_exit.storage import load_network

    network, metadata = load_network(model, sources)
    if store is None:
        policy = ExitPolicy(
            threshold=DEFAULT_THRESHOLD if threshold is None else threshold,
            exits_in_use=tuple(range(network.num_exits)),
            num_exits=network.num_exits,
        )
        engine = InferenceEngine(network, policy)
        return OpenedEngine(engine=engine, class_names=metadata.class_names, name=str(model), model=(network, metadata))
    exit_store = ExitStore(store)
    stored = exit_store.load(network.backbone_fingerprint, None)
    if stored is None:
        raise AppError(f"{store} holds no personal exits: run persephonee personalise --store {store} first.")
    network.load_exit_state(stored.exit_weights)
    policy = stored.policy if threshold is None else replace(stored.policy, threshold=threshold)
    return OpenedEngine(
        engine=InferenceEngine(network, policy, last_shift=stored.last_shift),
        class_names=metadata.class_names,
        name=f"{store} of user {stored.client_id}",
        client_id=stored.client_id,
        model=(network, metadata),
        known=exit_store.known_parts,
    )
