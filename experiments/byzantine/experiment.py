r"""What a number of hostile clients costs the merged exits, strategy by strategy.

    python -m persephonee.experiments.byzantine.experiment --model models/qmnist --dataset parquet \
        --data-path train.parquet --name qmnist --out runs/byzantine --page docs/security.md

Users whom the model never saw train the exits for a round, honestly and on flipped labels (class k becomes K - 1 - k).
Then a part of them is hostile: each attack of attacks.py, flipped labels, and both with a false number of samples too.
What is left of a round is merged by the app's own code and measured on the test parts of other users.

With `--rounds` above 1, a few of the attacks go on in every round.

Writes `byzantine-DATA.csv`, or with several rounds `byzantine-rounds-DATA.csv`: a row per strategy, number of hostile
clients and attack (and round). Prints the worst attack of each.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.feature_cache import FeatureCache
from persephonee.clients.personalisation.features import compute_features
from persephonee.commands.options import counts_of
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import Dataset, DataSettings
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.experiments.byzantine.attacks import ATTACKS
from persephonee.experiments.byzantine.hostile_round import (
    FALSE,
    FLIPPED,
    HONEST,
    Judge,
    Round,
    sent_by,
    strategies,
    train_round,
    users_apart,
)
from persephonee.experiments.results_page.page_marks import check_marks, put_between
from persephonee.fl_app.server_side.aggregation import Merger, allow_messages_outside_a_run
from persephonee.fl_app.server_side.client_bounds import array_norms
from persephonee.fl_app.settings.sharing_settings import PrivacySettings, SharingSettings
from persephonee.fl_app.wire.exit_arrays import ExitLayout
from persephonee.fl_app.wire.model_fit import open_fitting
from persephonee.multi_exit.atomic_files import check_writable, write_text_atomically
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network

PERSISTENT = ("sign flip", "flipped labels", "noise, false count")
"""Attacks that are tried over several rounds: those that stay within all bounds, and one that does not."""


def measure(network: MultiExitNetwork, round: Round, judge: Judge, hostile: Sequence[int]) -> pd.DataFrame:
    """Return strategy, hostile, attack and accuracy, a row each; hostile 0 is the merge of everybody, honest."""
    start = ExitLayout.of(network, "float32").arrays(network.exit_state())
    attacks = [name + lie for name in (*ATTACKS, FLIPPED) for lie in ("", FALSE)]
    rows: list[dict[str, Any]] = []
    cases = [(0, HONEST), *((count, attack) for count in hostile for attack in attacks)]
    for count, attack in track(cases, "merging", console=Console(stderr=True)):
        clients = sent_by(round, start, count, attack)
        for strategy, settings in strategies(count).items():
            if len(clients) < settings.needed:
                continue
            merged, _ = Merger(settings, PrivacySettings(), array_norms(start)).merge(1, start, clients, "")
            rows.append({"strategy": strategy, "hostile": count, "attack": attack, "accuracy": judge.accuracy(merged)})
    return pd.DataFrame(rows)


def several_rounds(
    network: MultiExitNetwork,
    users: Sequence[tuple[UserSamples, SampleSplit]],
    judge: Judge,
    settings: SharingSettings,
    *,
    hostile: int,
    attack: str,
    rounds: int,
    epochs: int,
    features: Sequence[FeatureCache] = (),
) -> list[float]:
    """Return the accuracy of the merged exits after each round, where the same clients attack in every round.

    Each round's clients train from what the round before merged, and hostile ones attack that. The network stays as it
    is.
    """
    layout, first = ExitLayout.of(network, "float32"), network.exit_state()
    start = current = layout.arrays(first)
    merger, accuracies = Merger(settings, PrivacySettings(), array_norms(start)), []
    features = features or [compute_features(network, samples.images) for samples, _ in users]
    try:
        for number in range(1, rounds + 1):
            flipped = hostile if attack.startswith(FLIPPED) else 0
            round = train_round(network, users, epochs, features, flipped)
            current, _ = merger.merge(number, current, sent_by(round, current, hostile, attack), "")
            network.load_exit_state(layout.state(current, first))
            accuracies.append(judge.accuracy(current))
    finally:
        network.load_exit_state(first)
    return accuracies


def measure_rounds(
    network: MultiExitNetwork,
    users: Sequence[tuple[UserSamples, SampleSplit]],
    judge: Judge,
    hostile: Sequence[int],
    rounds: int,
    epochs: int,
) -> pd.DataFrame:
    """Return strategy, hostile, attack, round and accuracy, a row each, under the attacks that cost most in a round."""
    rows: list[dict[str, Any]] = []
    features = [compute_features(network, samples.images) for samples, _ in users]
    cases = [(0, HONEST), *((count, attack) for count in hostile for attack in PERSISTENT)]
    for count, attack in track(cases, "rounds", console=Console(stderr=True)):
        for strategy, settings in strategies(count).items():
            if len(users) < settings.needed:
                continue
            found = several_rounds(
                network,
                users,
                judge,
                settings,
                hostile=count,
                attack=attack,
                rounds=rounds,
                epochs=epochs,
                features=features,
            )
            own = {"strategy": strategy, "hostile": count, "attack": attack}
            rows += [{**own, "round": number, "accuracy": accuracy} for number, accuracy in enumerate(found, 1)]
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame, clients: int, start: float) -> str:
    """Return the table of `measure` for a page: the worst attack for each strategy and number of hostile clients."""
    counts = sorted(set(table.hostile) - {0})
    lines = [
        "| strategy | all honest | " + " | ".join(f"{count} of {clients} hostile" for count in counts) + " |",
        "|---|" + "---|" * (len(counts) + 1),
    ]
    for strategy, part in table.groupby("strategy", sort=False):
        cells = [f"{part[part.hostile == 0].accuracy.iloc[0]:.1%}"]
        for count in counts:
            of = part[part.hostile == count]
            worst = of.loc[of.accuracy.idxmin()] if len(of) else None
            cells.append("too few clients" if worst is None else f"{worst.accuracy:.1%} ({worst.attack})")
        lines.append(f"| {strategy} | " + " | ".join(cells) + " |")
    attacks = table[table.hostile > 0].attack.nunique()
    lines += ["", f"Exits before the round: {start:.1%}. In brackets, of {attacks} attacks the one that cost the most."]
    return "\n".join(lines)


def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder for the table.")],
    dataset: Annotated[Dataset, typer.Option(help="As for the verbs of the command line.")] = "synthetic-writers",
    data_path: Annotated[Path | None, typer.Option(help="Where the data lies, if it is local.")] = None,
    clients: Annotated[int, typer.Option(help="Users who take part in the round.", min=2)] = 12,
    judges: Annotated[int, typer.Option(help="Other users, on whose test parts the exits are measured.", min=1)] = 40,
    hostile: Annotated[str, typer.Option(help="Numbers of hostile clients, with commas.")] = "1,2,4,5",
    epochs: Annotated[int, typer.Option(help="Passes over a user's samples.", min=1)] = 5,
    name: Annotated[str, typer.Option(help="Of the data, in the files' names; the data set's by default.")] = "",
    rounds: Annotated[int, typer.Option(help="1 tries every attack; more try a few, in every round.", min=1)] = 1,
    page: Annotated[
        Path | None, typer.Option(help="A page with marks for the table, such as docs/security.md.")
    ] = None,
) -> None:
    """Attack, merge, measure and print."""
    torch.set_num_threads(1)
    allow_messages_outside_a_run()
    counts = counts_of("hostile", hostile)
    if max(counts) > clients:
        raise typer.BadParameter(f"--hostile {hostile} is more than --clients {clients}; give fewer.")
    file = f"byzantine-{'rounds-' if rounds > 1 else ''}{name or dataset}"
    check_writable(out)
    if page is not None:
        check_marks(page, file)
    network, metadata = load_network(model)
    network.freeze_backbone()
    partitions = open_fitting(DataSettings(dataset=dataset, data_path=data_path), network, metadata)
    users = users_apart(partitions, set(metadata.trained_on), clients + judges)
    if len(users) <= clients:
        raise ClientSettingsError(
            f"{len(users)} users are large enough and were not trained on, and {clients} take part beside those who "
            "judge: ask for fewer --clients, or take other data."
        )
    judge = Judge(network, users[clients:])
    if rounds > 1:
        table = measure_rounds(network, users[:clients], judge, counts, rounds, epochs)
        last = table[table["round"] == rounds]
    else:
        table = last = measure(network, train_round(network, users[:clients], epochs), judge, counts)
    write_text_atomically(out / f"{file}.csv", table.to_csv(index=False, float_format="%.5f"))
    start = judge.accuracy(ExitLayout.of(network, "float32").arrays(network.exit_state()))
    text = markdown(last, clients, start)
    Console().print(text, soft_wrap=True, highlight=False, markup=False)
    if page is not None:
        put_between(page, file, text)


if __name__ == "__main__":
    run_program(main)
