"""The results page's part on simulations: what personalisation gave to each exit and to each user, run by run."""

from collections.abc import Mapping
from typing import Any

from persephonee.experiments.results_page.sources import Run, Sources, as_seen_from_here, percent, shell_block

DATA_OPTIONS = {
    "dataset": "synthetic-writers",
    "data-path": "",
    "user-column": "writer_id",
    "label-column": "character",
    "num-writers": 3550,
    "data-seed": 0,
}
"""The options that say which data, and their defaults."""

RUN_OPTIONS = {
    "rule": "auto",
    "delta": 0.1,
    "scheme": "auto",
    "epochs": 10,
    "learning-rate": 0.01,
    "batch-size": 32,
    "drop-tolerance": 0.01,
    "share-exits": False,
    "strategy": "fedavg",
    "server-learning-rate": 0.01,
    "sharing-fraction": 1.0,
    "share-dtype": "float32",
    "proximal-mu": 0.0,
    "held-out-fraction": 0.0,
    "seed": 0,
}
"""Further options of `simulate`, and their defaults; one that has its default is left out."""

PRETRAIN_OPTIONS = {
    "epochs": 6,
    "max_samples": None,
    "batch_size": 128,
    "learning_rate": 0.1,
    "seed": 0,
}

OPTIONS_OF_SIMULATE = frozenset(
    {"dataset", "data-path", "user-column", "label-column", "drop-tolerance", "share-exits", "seed"}
)
"""Settings that have an option of `simulate` of their own."""

NAMES = {"synthetic-writers": "built-in writers", "parquet": "QMNIST by writer"}


def render_runs(sources: Sources) -> list[str]:
    """Return the lines of all runs of a single round, nothing where there are none."""
    runs = [run for run in sources.runs if not run.has_held_out_users]
    if not runs:
        return []
    head = ["data, labels", "users", "original", "policy before", "after", "MACs", "helped", "hurt"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(_row(run) for run in runs), ""]
    said = (
        "The policy in force, means over users; MACs are a fraction of the original's; helped and hurt say whose "
        "policy is more accurate than the original, and whose is less."
    )
    commands = [line for run in runs for line in shell_block(simulate_text(run, sources.models))]
    return [*lines, said, "", *commands]


def render_models(sources: Sources) -> list[str]:
    """Return how the global models of the runs were made, and how good they are on users whom training never saw."""
    lines: list[str] = []
    for fingerprint, (name, described) in sources.models.items():
        history = described["metadata"]["history"]
        users = [run for run in sources.runs if run.config.get("model") == fingerprint]
        if not users or not history:
            continue
        settings = described["metadata"]["settings"]
        best = history[settings["best_epoch"] - 1]
        exits = [f"{100 * accuracy:.1f}%" for accuracy in best["validation_accuracy"]]
        names = [*(f"exit {exit}" for exit in range(len(exits) - 1)), "last exit"]
        lines += shell_block(_pretrain_text(name, described, users[0].config))
        lines += [
            f"| `{name}`, fingerprint {fingerprint[:12]} | {' | '.join(names)} |",
            "|---" * (len(exits) + 1) + "|",
        ]
        samples = (
            f"epoch {best['epoch']} of {settings['epochs']}, {settings['num_validation']:,} samples of held-out users"
        )
        lines += [f"| {samples} | {' | '.join(exits)} |", ""]
    return lines


def simulate_text(run: Run, models: Mapping[str, tuple[str, dict[str, Any]]]) -> list[str]:
    """Return the command that makes a run again, from its config.json."""
    # earlier versions had one rule and did not say so
    config = {"rule": "paper", **run.config}
    model = models.get(config.get("model", ""), ("MODEL", {}))[0]
    words = ["persephonee simulate", f"--model models/{model}", *_settings(config, DATA_OPTIONS)]
    words += [f"--clients {config['clients']}", f"--rounds {config.get('rounds', config.get('num-server-rounds'))}"]
    words += [f"--labels {config['labels']}", *_settings(config, RUN_OPTIONS), f"--run-dir runs/{run.path.name}"]
    return words


def data_name(config: Mapping[str, Any]) -> str:
    """Return what the run's data is called."""
    return NAMES.get(config["dataset"], str(config["dataset"]))


def heading(name: str) -> str:
    """Return a name as a heading begins."""
    return name[0].upper() + name[1:]


def _row(run: Run) -> str:
    summary, policy = run.summary, run.summary["policy"]
    counts, against = summary["counts"], policy["against_original"]
    small = f" ({counts['too_small']} too small)" if counts["too_small"] else ""
    cells = [
        f"{data_name(run.config)}, {run.config['labels']}",
        f"{counts['ok']}{small}",
        *(percent(policy[f"accuracy_{name}"]["mean"]) for name in ("original", "before", "after")),
        percent(policy["cost_fraction_after"]["mean"], 0),
        *(percent(against[name], 0) for name in ("helped", "hurt")),
    ]
    return f"| {' | '.join(cells)} |"


def _options(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    words = []
    for name, default in defaults.items():
        value = config.get(name, default)
        if value == default:
            continue
        if name == "data-path":
            value = as_seen_from_here(value)
        words.append(f"--{name}" if value is True else f"--{name} {value}")
    return words


def _settings(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return what `simulate` is told: a few options, and the rest as --set."""
    options = _options(config, {key: default for key, default in defaults.items() if key in OPTIONS_OF_SIMULATE})
    rest = {key: default for key, default in defaults.items() if key not in OPTIONS_OF_SIMULATE}
    return options + [f"--set {word.removeprefix('--').replace(' ', '=')}" for word in _options(config, rest)]


def _pretrain_text(name: str, described: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    spec, settings = described["spec"], described["metadata"]["settings"]
    words = ["persephonee pretrain", f"--backbone {spec['backbone']}", f"--num-exits {len(spec['cuts'])}"]
    words += _options(data, DATA_OPTIONS)
    words.append(f"--max-users {settings['max_users'] or 0}")
    for option, default in PRETRAIN_OPTIONS.items():
        if settings[option] != default:
            words.append(f"--{option.replace('_', '-')} {settings[option]}")
    return [*words, f"--out models/{name}"]
