"""What answers images for `evaluate` and `predict`: a model, a device's store, or an exported network.

Neither an exported network nor a model that carries graphs needs PyTorch, so that nothing here imports it by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persephonee.commands.model_graphs import load_for_device
from persephonee.commands.options import source_names

if TYPE_CHECKING:
    from persephonee.clients.inference.engine import Engine
    from persephonee.clients.personalisation.features import Network
    from persephonee.data_partitions.known_parts import KnownParts
    from persephonee.multi_exit.settings import ComputeSettings, RuntimeSettings
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
    model: "tuple[Network, ModelMetadata] | None" = None
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
    model: Path | None,
    store: Path | None,
    exported: Path | None,
    threshold: float | None,
    sources: str,
    runtime: "RuntimeSettings",
    compute: "ComputeSettings",
) -> OpenedEngine:
    """Open what the options name, without PyTorch where that is not needed.

    Raises:
        typer.BadParameter: they do not go together.
        ClientError, MultiExitError: a folder cannot be used, and why.
    """
    if (model is None) == (exported is None):
        raise typer.BadParameter("expected either --model MODEL, with --store DIR or without, or --exported DIR.")
    if model is not None:
        loaded = load_for_device(model, source_names(sources), runtime, compute, trains_heads=False)
        return _open_model(model, loaded, store, threshold)
    if exported is None or store is not None or threshold is not None:
        raise typer.BadParameter("--exported has its own exits and threshold: leave out --store and --threshold.")
    from persephonee.clients.inference.onnx_engine import OnnxEngine

    engine = OnnxEngine(exported, threads=runtime.threads)
    found = engine.exported
    return OpenedEngine(
        engine=engine,
        class_names=found.class_names,
        name=f"{exported} of user {found.client_id}",
        client_id=found.client_id,
    )


def _open_model(
    folder: Path, loaded: "tuple[Network, ModelMetadata]", store: Path | None, threshold: float | None
) -> OpenedEngine:
    from persephonee.clients.inference.engines import engine_for
    from persephonee.clients.personalisation.exit_store import ExitStore
    from persephonee.clients.personalisation.policy import ExitPolicy
    from persephonee.fl_app.errors import AppError

    network, metadata = loaded
    if store is None:
        policy = ExitPolicy(
            threshold=DEFAULT_THRESHOLD if threshold is None else threshold,
            exits_in_use=tuple(range(network.num_exits)),
            num_exits=network.num_exits,
        )
        return OpenedEngine(
            engine=engine_for(network, policy), class_names=metadata.class_names, name=str(folder), model=loaded
        )
    exit_store = ExitStore(store)
    own = network.exit_state()
    stored = exit_store.load(network.backbone_fingerprint, own, None, graphs=network.graphs_fingerprint)
    if stored is None:
        raise AppError(f"{store} holds no personal exits: run persephonee personalise --store {store} first.")
    network.load_exit_state(stored.exit_weights)
    policy = stored.policy if threshold is None else replace(stored.policy, threshold=threshold)
    return OpenedEngine(
        engine=engine_for(network, policy, last_shift=stored.last_shift),
        class_names=metadata.class_names,
        name=f"{store} of user {stored.client_id}",
        client_id=stored.client_id,
        model=loaded,
        known=exit_store.known_parts,
    )
