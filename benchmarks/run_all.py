"""All benchmarks, and the page: `make bench`, or `python -m persephonee.benchmarks.run_all --out runs/bench`.

Each part is a process of its own; one that fails is named in the page and loses none of the others. `--resume` keeps
the parts that are done. Without `--model` a small network is trained on the built-in writers; the photographs and the
published weights are used where `--real-data` has them.
"""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from persephonee.benchmarks.bench_models import SOURCES
from persephonee.benchmarks.benchmark_commands import DONE, Part, is_done, run_part
from persephonee.benchmarks.users import ROOT, data_options
from persephonee.commands.option_groups import with_groups
from persephonee.commands.options import data_settings
from persephonee.commands.terminal import run_program
from persephonee.data_partitions.settings import DataSettings
from persephonee.multi_exit.atomic_files import check_writable
from persephonee.multi_exit.storage import SavedModel

PHOTOS = ("mobilenet_v2", "resnet50")
PFL = "pfl>=0.6,<0.7"
"""In a folder of its own: what it needs of other packages contradicts what Flower needs."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured: options of the parts, and the images of a user at 224 px.

    Attributes:
        cost: options of `personalisation_cost` at 28 px.
        photo_cost: options of the same at 224 px, by network.
        photo_samples: number of images of a user at 224 px, by network.
        simulation, scaling, inference, device, gpu: options of the parts of these names.
    """

    cost: str
    photo_cost: dict[str, str]
    photo_samples: dict[str, int]
    simulation: str
    scaling: str
    inference: str
    device: str
    gpu: str


SCALES = {
    "smoke": Scale(
        cost="--users 1 --rounds 1 --epochs 1 --max-train 20 --max-test 10",
        photo_cost=dict.fromkeys(PHOTOS, "--users 1 --rounds 1 --epochs 1 --steps 1 --max-train 8 --max-test 4"),
        photo_samples=dict.fromkeys(PHOTOS, 40),
        simulation="--clients 4 --baselines-clients 4 --many-clients 0 --repeats 1",
        scaling="--users 1,2,3 --samples 20,30,40 --repeats 1",
        inference="--users 1 --repeats 1",
        device="--users 1",
        gpu="--users 4 --repeats 1",
    ),
    "quick": Scale(
        cost="--users 3 --rounds 2",
        photo_cost={
            "mobilenet_v2": "--users 1 --rounds 1 --steps 4 --max-train 128 --max-test 50",
            "resnet50": "--users 1 --rounds 1 --steps 3 --max-train 512 --max-test 50 --memory-budget 1000000000",
        },
        # a quarter tests, and a quarter of the rest calibrates
        photo_samples={"mobilenet_v2": 232, "resnet50": 912},
        simulation="--clients 250 --baselines-clients 32 --many-clients 2000 --repeats 1",
        scaling="--users 2,4,8,16 --samples 50,100,200,400,800 --repeats 3",
        inference="--users 3 --repeats 5",
        device="--users 1",
        gpu="--repeats 2",
    ),
}
SCALES["brief"] = replace(
    SCALES["quick"],
    cost="--users 2 --rounds 2",
    simulation="--clients 60 --baselines-clients 24 --many-clients 0 --repeats 1",
)
"""For a machine that has other work to do; the page states how many users there were."""


@with_groups(data=data_settings)
def main(
    *,
    data: DataSettings,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/bench"),
    scale: Annotated[str, typer.Option(help="smoke, brief or quick.")] = "quick",
    model: Annotated[Path | None, typer.Option(help="Global model of DATA, with msdnet heads.")] = None,
    real_data: Annotated[Path | None, typer.Option(help="Folder with tiny-imagenet-200 and weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the parts that are done.")] = False,
    only: Annotated[str, typer.Option(help="Run these parts only, with commas.")] = "",
    page: Annotated[Path, typer.Option(help="The page to write.")] = ROOT / "docs" / "performance.md",
) -> None:
    """Run all benchmarks and write the page."""
    if scale not in SCALES:
        raise typer.BadParameter(f"--scale {scale} is unknown: use one of {', '.join(SCALES)}.")
    # the parts run in the repository's root
    out = out.absolute()
    check_writable(out)
    check_writable(page.absolute().parent)
    if model is not None:
        SavedModel.read(model, SOURCES)
    if data.data_path is not None:
        data = replace(data, data_path=data.data_path.absolute())
    chosen = set(filter(None, only.split(",")))
    everything = parts(scale, data, out, model, real_data or _real_data_beside())
    unknown = chosen - {part.name for part in everything}
    if unknown:
        names = ", ".join(part.name for part in everything)
        raise typer.BadParameter(f"--only {min(unknown)} is no part of a run: use of {names}.")
    for part in everything:
        if (chosen and part.name not in chosen) or (resume and is_done(part, out)):
            continue
        typer.echo(f"{part.name} ...", nl=False)
        outcome = run_part(part, out)
        typer.echo(f" {outcome.state} after {outcome.seconds:.0f} s {outcome.reason}")
    write = Part(name="page", command=_python("page.page", str(out), "--page", str(page.absolute())))
    outcome = run_part(write, out)
    if outcome.state != DONE:
        raise typer.BadParameter(f"the page was not written: {outcome.reason}")
    typer.echo(f"{page} is written")


def parts(scale: str, data: DataSettings, out: Path, model: Path | None, real_data: Path | None) -> list[Part]:
    """Return what is run, in its order: models first, then what is measured on them."""
    sizes, options, models = SCALES[scale], data_options(data.to_flat()), out / "models"
    network, pooled = (model or models / "writers").absolute(), models / "pooled"
    make, cost = ("make_models", "--scale", scale), "personalisation-28"
    pfl = out / "pfl"
    opponents = ("--pooled-model", str(pooled), "--pfl", str(pfl))
    on_network = ("--model", str(network), *options, "--out", str(out))
    found = [] if model else [_part("model-writers", *make, "--kind", "writers", "--out", str(network), *options)]
    found += [
        _part("model-pooled", *make, "--kind", "pooled", "--model", str(network), "--out", str(pooled), *options),
        _part(
            "inference", "inference.benchmark", *on_network, "--sources", ",".join(SOURCES), *sizes.inference.split()
        ),
        _part("device", "device_memory.benchmark", *on_network, *sizes.device.split()),
        _part("growth", "simulation.scaling", *on_network, *sizes.scaling.split()),
        Part(name="pfl", command=(sys.executable, "-m", "pip", "install", "--upgrade", "--target", str(pfl), PFL)),
        _part("simulation", "simulation.benchmark", *on_network, *opponents, *sizes.simulation.split()),
        _part(cost, "personalisation_cost.benchmark", *on_network, "--name", cost, *sizes.cost.split()),
    ]
    for name in PHOTOS:
        found += _photo_parts(name, scale, out, real_data)
    if torch.cuda.is_available():
        return [*found, _part("gpu", "simulation.gpu_population", *on_network, "--device", "cuda", *sizes.gpu.split())]
    return [
        *found,
        Part(
            name="gpu", missing="there is no GPU; persephonee.benchmarks.simulation.gpu_population takes --device cuda"
        ),
    ]


def _photo_parts(name: str, scale: str, out: Path, real_data: Path | None) -> list[Part]:
    sizes, model, cost = SCALES[scale], f"model-{name}-224", f"personalisation-{name}-224"
    if real_data is None:
        missing = "there are no photographs and no published weights; name them with --real-data"
        return [Part(name=model, missing=missing), Part(name=cost, missing=missing)]
    photos = DataSettings(
        dataset="imagefolder",
        data_path=real_data.absolute() / "tiny-imagenet-200",
        num_users=2,
        samples_per_user=sizes.photo_samples[name],
        image_size=224,
    )
    options, folder = data_options(photos.to_flat()), str(out / "models" / f"{name}-224")
    make = ("--kind", name, "--scale", scale, "--real-data", str(real_data.absolute()), "--out", folder)
    measure = ("--model", folder, *options, "--out", str(out), "--name", cost, *sizes.photo_cost[name].split())
    return [_part(model, "make_models", *make, *options), _part(cost, "personalisation_cost.benchmark", *measure)]


def _part(name: str, module: str, *arguments: str) -> Part:
    return Part(name=name, command=_python(module, *arguments))


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"persephonee.benchmarks.{module}", *arguments)


def _real_data_beside() -> Path | None:
    """Return where the tests look for real data, if it is there."""
    folder = Path(os.environ.get("PERSEPHONEE_REAL_DATA", ROOT.parent / "shared" / "data"))
    needed = (folder / "tiny-imagenet-200", folder / "weights")
    return folder if all(path.exists() for path in needed) else None


if __name__ == "__main__":
    run_program(main)
