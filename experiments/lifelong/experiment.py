"""A life, as a picture: streams with a real shift in the middle, never personalised, once, and orchestrated (Sec. 3.4).

    python -m persephonee.experiments.lifelong.experiment --scale quick --data qmnist --data-path FILE --model MODEL
    --out docs/images
    python -m persephonee.experiments.lifelong.experiment --scale quick --data synthetic-writers --model MODEL --out
    docs/images

Writes `lifelong-DATA.png` and `.svg`, with `-controlled` in the name under that policy rule, and prints what the curves
say in numbers, how far a device stays below the last exit once it has noticed the shift, and how each drift rule does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.settings import PersonalisationSettings, Schedule
from persephonee.clients.personalisation.settings import Rule as PolicyRule
from persephonee.clients.runtime.drift import RULES, DriftSettings, Rule
from persephonee.commands.terminal import run_program
from persephonee.experiments.lifelong.detection import Detection, measure, watch
from persephonee.experiments.lifelong.device_life import (
    STRATEGIES,
    LifeRecord,
    live,
    orchestrator_settings,
    original_predictions,
)
from persephonee.experiments.lifelong.figure import NOTICED, WINDOW, draw_lives
from persephonee.experiments.lifelong.streams import SAMPLES_PER_DAY, Stream, qmnist_streams, synthetic_streams
from persephonee.multi_exit.atomic_files import check_writable
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.storage import load_network
from persephonee.server.report.figure_style import figure_style, save_figure


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is lived through.

    Attributes:
        devices: whose lives are drawn.
        people: QMNIST: writers in each half of a life.
        samples: built-in writers: characters in each half.
        watched: devices on which the drift rules are measured.
        repeats: random orders for each of them.
    """

    devices: int
    people: int
    samples: int
    watched: int
    repeats: int


SCALES = {
    "smoke": Scale(devices=1, people=2, samples=160, watched=1, repeats=2),
    "quick": Scale(devices=3, people=6, samples=750, watched=4, repeats=15),
}


def streams_of(data: str, path: Path | None, trained_on: Sequence[str], scale: Scale, count: int) -> list[Stream]:
    """Return the streams of a data source.

    Raises:
        ClientSettingsError: the source is unknown, or lacks its path.
    """
    if data == "synthetic-writers":
        return synthetic_streams(trained_on, count, scale.samples, seed=0)
    if data == "qmnist" and path is not None:
        return qmnist_streams(path, trained_on, count, scale.people, seed=0)
    raise ClientSettingsError(
        f"data={data} and path={path} do not go together: use qmnist with a path, or synthetic-writers."
    )


def main(
    *,
    model: Annotated[Path, typer.Option(help="Folder of the global model.")],
    out: Annotated[Path, typer.Option(help="Folder for the figure.")],
    data: Annotated[Literal["qmnist", "synthetic-writers"], typer.Option(help="Which users.")] = "synthetic-writers",
    data_path: Annotated[Path | None, typer.Option(help="qmnist: the parquet file.")] = None,
    scale: Annotated[Literal["smoke", "quick"], typer.Option(help="How many devices.")] = "smoke",
    p_expl: Annotated[float, typer.Option(help="Fraction of the samples that is explored.", min=0, max=1)] = 0.2,
    policy_rule: Annotated[PolicyRule, typer.Option(help="Who chooses the policies: paper or controlled.")] = "paper",
    schedule: Annotated[Schedule, typer.Option(help="Of the rounds.")] = "paper",
    rule: Annotated[Rule, typer.Option(help="Drift rule of the orchestrated device.")] = "page-hinkley",
    detections: Annotated[bool, typer.Option(help="Also measure the drift rules, whatever the policy rule.")] = True,
) -> None:
    """Live, measure, draw and print."""
    torch.set_num_threads(1)
    check_writable(out)
    network, metadata = load_network(model)
    chosen, personalisation = SCALES[scale], PersonalisationSettings(rule=policy_rule, schedule=schedule)
    streams = streams_of(data, data_path, metadata.trained_on, chosen, max(chosen.devices, chosen.watched))
    console = Console()
    lived = streams[: chosen.devices]
    lives: dict[str, list[LifeRecord]] = {strategy: [] for strategy in STRATEGIES}
    for stream in track(lived, "lives", console=Console(stderr=True)):
        # one after the other, so that what else this machine does touches all strategies' latencies alike
        for strategy, records in lives.items():
            orchestrator = orchestrator_settings(strategy, p_expl, rule)
            records.append(live(network, stream, orchestrator, seed=0, personalisation=personalisation))
    originals = [original_predictions(network, stream) for stream in lived]
    what = {
        "qmnist": "QMNIST: from census employees to students",
        "synthetic-writers": "Built-in writers changing hand",
    }
    title = f"{what[data]} ({len(lived)} devices, {SAMPLES_PER_DAY} samples a day, means of {WINDOW})"
    name = f"lifelong-{data}" if policy_rule == "paper" else f"lifelong-{data}-{policy_rule}"
    with figure_style():
        save_figure(draw_lives(lives, originals, title), out, name)
    _print_lives(console, lives, originals)
    _print_gaps(console, lives, originals)
    if detections:
        _print_detections(console, _detections(network, streams[: chosen.watched], chosen, p_expl), p_expl)


def gap_once_noticed(record: LifeRecord, original: NDArray[np.bool_]) -> tuple[int | None, float]:
    """Return after how many samples a shift was noticed, and by how much a window is worse than the last exit at most.

    Of windows of `WINDOW` samples that begin once the shift has been noticed; None and NaN where it was not.
    """
    shift = record.stream.shift
    places = [event.details["frame"] for event in record.events if event.kind in NOTICED]
    noticed = next((place for place in places if place >= shift), None)
    if noticed is None or len(original) - noticed < WINDOW:
        return None, float("nan")
    behind = original[noticed:].astype(np.float64) - record.correct[noticed:]
    windows = np.convolve(behind, np.full(WINDOW, 1 / WINDOW), mode="valid")
    return noticed - shift, float(windows.max())


def _detections(network: MultiExitNetwork, streams: Sequence[Stream], scale: Scale, p_expl: float) -> list[Detection]:
    watched = [watch(network, stream, seed=0) for stream in track(streams, "watch", console=Console(stderr=True))]
    return [measure(watched, DriftSettings(rule=rule), p_expl, scale.repeats, seed=0) for rule in RULES]


def _print_lives(
    console: Console,
    lives: dict[str, list[LifeRecord]],
    originals: Sequence[NDArray[np.bool_]],
) -> None:
    """Print accuracy and cost before the shift, in the 100 samples after it, and in the last 150."""
    console.print(
        "| strategy | accuracy before | just after | at the end | cost before | just after | at the end | rounds |",
        soft_wrap=True,
    )
    console.print("|---|---|---|---|---|---|---|---|")
    for strategy, records in lives.items():
        accuracy = _parts([record.correct for record in records], records)
        cost = _parts([record.cost for record in records], records)
        rounds = np.mean([len(record.rounds) for record in records])
        cells = [*(f"{value:.1%}" for value in accuracy), *(f"{value:.0%}" for value in cost), f"{rounds:.1f}"]
        console.print(f"| {strategy} | {' | '.join(cells)} |", soft_wrap=True)
    records = lives[STRATEGIES[0]]
    cells = [f"{value:.1%}" for value in _parts(originals, records)]
    console.print(f"| the last exit alone | {' | '.join(cells)} | 100% | 100% | 100% | |", soft_wrap=True)


def _print_gaps(console: Console, lives: dict[str, list[LifeRecord]], originals: Sequence[NDArray[np.bool_]]) -> None:
    """Print when each orchestrated device noticed the shift, and how far below the last exit it was afterwards."""
    for record, original in zip(lives[STRATEGIES[-1]], originals, strict=True):
        delay, gap = gap_once_noticed(record, original)
        said = f"noticed after {delay} samples; from then on at most {100 * gap:.1f} points below the last exit over"
        said = "did not notice the shift" if delay is None else f"{said} {WINDOW} samples"
        console.print(f"{record.stream.name}: {said}.", soft_wrap=True)


def _parts(values: Sequence[NDArray[Any]], records: Sequence[LifeRecord]) -> list[float]:
    shifts = [record.stream.shift for record in records]
    parts = (
        [v[s - 150 : s] for v, s in zip(values, shifts, strict=True)],
        [v[s : s + 100] for v, s in zip(values, shifts, strict=True)],
        [v[-150:] for v in values],
    )
    return [float(np.mean([part.mean() for part in each])) for each in parts]


def _print_detections(console: Console, detections: Sequence[Detection], p_expl: float) -> None:
    console.print(f"\nWith p_expl = {p_expl:g}; samples count whether explored or not.\n")
    head = "| rule | median delay | 90th percentile | noticed | false alarms per 10,000 | on the worst device |"
    console.print(head, soft_wrap=True)
    console.print("|---|---|---|---|---|---|")
    for each in detections:
        console.print(
            f"| {each.rule} | {each.delay:.0f} | {each.delay_high:.0f} | {each.noticed:.0%} | "
            f"{each.false_alarms:.1f} | {each.false_alarms_worst:.1f} |",
            soft_wrap=True,
        )


if __name__ == "__main__":
    run_program(main)
