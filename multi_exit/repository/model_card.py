"""The card of a model: README.md with the front matter that Hugging Face reads, written beside the weights.

Everything in it follows from `network.json`; nothing of a user but counts stands in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persephonee.multi_exit.atomic_files import write_text_atomically
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import read_description

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD_NAME = "README.md"
MEASURED = "measured"
"""Where the metadata's settings keep what `server/training/exit_measurement.py` measured."""
OWNERS = ("license", "license_name", "license_link")
"""What the owner of a model writes into its card, and what is kept when the card is written again."""
MAX_CARD_BYTES = 2**20

TAGS = ["early-exit", "multi-exit", "personalisation", "federated-learning", "on-device"]


def write_card(network: MultiExitNetwork, folder: Path) -> Path:
    """Write the card of the network that is saved in `folder`, and return its path.

    Raises:
        ModelFileError: the folder holds no model.
        OSError: the folder cannot be written.
    """
    description = read_description(folder)
    path, metadata, name = folder / CARD_NAME, description["metadata"], folder.absolute().name
    owned = owned_lines(path)
    text = "\n".join(_text(name, network, description["fingerprint"], metadata, is_licensed="license" in owned))
    write_text_atomically(path, f"---\n{_front_matter(name, metadata, owned).to_yaml()}\n---\n\n{text}\n")
    return path


def owned_lines(path: Path) -> dict[str, str]:
    """Return the licence that the owner has written into a card; nothing where there is none that can be read."""
    from huggingface_hub import ModelCard

    if not path.is_file() or path.is_symlink() or path.stat().st_size > MAX_CARD_BYTES:
        return {}
    try:
        data = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
        values = {key: data.get(key) for key in OWNERS}
    # the front matter is anybody's YAML, and its reader raises errors of several packages
    except Exception:
        return {}
    return {key: value for key, value in values.items() if isinstance(value, str)}


def _front_matter(name: str, metadata: Mapping[str, Any], owned: Mapping[str, str]) -> "ModelCardData":
    from huggingface_hub import EvalResult, ModelCardData

    measured = metadata["settings"].get(MEASURED)
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=metadata["dataset"] or "unknown",
            dataset_name=f"{metadata['dataset']}, users whom training never saw",
            metric_type="accuracy",
            metric_name=f"accuracy of exit {exit}, mean over users",
            metric_value=round(row["accuracy"]["mean"], 4),
        )
        for exit, row in enumerate(measured["exits"] if measured else ())
    ]
    return ModelCardData(
        library_name="persephonee",
        pipeline_tag="image-classification",
        tags=TAGS,
        # an index of results without a name is refused
        model_name=name if results else None,
        eval_results=results or None,
        license=owned.get("license"),
        license_name=owned.get("license_name"),
        license_link=owned.get("license_link"),
    )


def _text(
    name: str, network: MultiExitNetwork, fingerprint: str, metadata: Mapping[str, Any], is_licensed: bool
) -> Iterator[str]:
    settings, spec = metadata["settings"], network.spec
    yield f"# {_plain(name)}\n"
    yield (
        f"A convolutional network with {network.num_exits} early exits, whose exits each device personalises on its "
        "user's own samples (PersEPhonEE, [arXiv 2102.01393](https://arxiv.org/abs/2102.01393)). The backbone never "
        f"changes. Backbone: `{_plain(spec.backbone)}`, {spec.num_classes} classes, images of {spec.in_channels}x"
        f"{spec.input_size}x{spec.input_size} (channels, height, width) in [0, 1]. Fingerprint: `{fingerprint[:16]}`.\n"
    )
    yield from _data_part(metadata, settings)
    yield from _exits_part(network, settings.get(MEASURED))
    yield from _promise_part(metadata.get("risk_pools", {}))
    yield "## Use\n"
    yield "```sh\npersephonee model pull hf://OWNER/NAME models/mine    # or a copy of this folder"
    yield "persephonee inspect models/mine"
    yield "persephonee personalise --model models/mine --user ID --store store \\"
    yield "    --dataset parquet --data-path FILE\n```\n"
    yield "## Licence\n"
    yield (
        "As the front matter says.\n"
        if is_licensed
        else "None is stated. The owner of this model chooses one and writes `license:` into the front matter; it is "
        "kept when this card is written again.\n"
    )
    yield "## Limits\n"
    yield (
        "Accuracies hold for users and images like those above, and for no others. `network.json` names the users who "
        "trained the model, so that nobody is ever tested on them: where their ids tell who they are, replace them "
        "before you train. The weights may reveal something of the training samples."
    )


def _data_part(metadata: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    names = metadata["class_names"]
    shown = ", ".join(f"`{_plain(name)}`" for name in names[:20])
    validated, calibrated = (len(settings.get(key) or ()) for key in ("validated_on", "calibrated_on"))
    trained = len(metadata["trained_on"]) - validated - calibrated
    yield "## Data and users\n"
    yield f"- Data: `{_plain(metadata['dataset'])}`." if metadata["dataset"] else "- Data: not recorded."
    if names:
        yield f"- Classes: {shown}{f', and {len(names) - 20} more' if len(names) > 20 else ''}."
    if trained > 0:
        samples = f" with {settings['num_train']} samples" if "num_train" in settings else ""
        yield f"- {_users(trained)}{samples} trained the model."
    if validated:
        yield f"- {_users(validated)} apart chose the best epoch (epoch {settings.get('best_epoch', '?')})."
    if calibrated:
        yield f"- {_users(calibrated)} apart trained nothing, and calibrated what is promised."
    if settings.get("backbone_weights"):
        yield f"- The backbone began with the weights of `{_plain(str(settings['backbone_weights']))}`."
    yield ""


def _exits_part(network: MultiExitNetwork, measured: Mapping[str, Any] | None) -> Iterator[str]:
    costs = network.costs
    yield "## Exits\n"
    yield "| exit | behind | MMAC | of the original | parameters | accuracy (95 % interval) | ECE | ECE, calibrated |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in costs.exit_costs:
        found = measured["exits"][row.exit] if measured else None
        accuracy = "–" if found is None else _interval(found["accuracy"])
        errors = ("–", "–") if found is None else (f"{found[key]:.3f}" for key in ("ece", "ece_calibrated"))
        macs = costs.alone_macs(row.exit)
        cells = (
            "last" if row.exit == network.num_exits else str(row.exit),
            f"`{_plain(row.at)}`",
            f"{macs / 1e6:.2f}",
            f"{macs / costs.original_macs:.0%}",
            str(costs.alone_params(row.exit)),
            *(accuracy, *errors),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield "Costs are those of a network with this exit alone: the backbone up to it and its own head."
    if measured:
        means = "means over" if measured["users"] > 1 else "of"
        over = "users, each of whom counts the same" if measured["users"] > 1 else "that user's samples"
        yield (
            f"Accuracies are {means} {_users(measured['users'])} ({measured['samples']} samples) whom training never "
            f"saw; the intervals are a bootstrap over {over}. The same users chose the best epoch, and the "
            "temperatures and biases of the calibration were fitted on them, so that both flatter a little. ECE: the "
            "expected calibration error over 15 bins, of all samples. Nothing here is personal yet."
        )
    yield ""


def _promise_part(pools: Mapping[str, Any]) -> Iterator[str]:
    yield "## What is promised to a device\n"
    if not pools:
        yield (
            "Nothing: the model carries no curves of other users, so that the rule `controlled` keeps the original "
            "network. `persephonee calibrate` measures them.\n"
        )
        return
    yield (
        "With the rule `controlled`, users like those who calibrated the model lose on average at most the tolerance "
        "against their last exit, except with the probability delta. The smallest tolerance for which this was "
        "certified with delta 0.1:\n"
    )
    yield "| personalised | users | tolerance |"
    yield "|---|---|---|"
    for pool, values in sorted(pools.items()):
        yield f"| {_plain(pool)} | {values['users']} | {_tolerance(values['certificates'])} |"
    yield ""


def _tolerance(certificates: Sequence[Mapping[str, Any]]) -> str:
    fitting = [one["tolerance"] for one in certificates if one["delta"] <= 0.1 + 1e-12]
    return f"{100 * min(fitting):g} points" if fitting else "none: the original network stays"


def _interval(accuracy: Mapping[str, float]) -> str:
    return f"{100 * accuracy['mean']:.1f} % ({100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f})"


def _users(count: int) -> str:
    return "1 user" if count == 1 else f"{count} users"


def _plain(text: str) -> str:
    """Return a name without what would be markup: names come from people's data."""
    return "".join(letter for letter in text if letter.isprintable() and letter not in "`|<>[]")
