"""FEMNIST exactly as published: fetched from its hub, or made by LEAF's scripts, opened and counted.

    python -m persephonee.experiments.data.femnist --out data/femnist --download
    python -m persephonee.experiments.data.femnist --leaf leaf/data/femnist/data

The first needs a network, and leaves the hub's parquet files in OUT, which `--dataset parquet --data-path OUT` takes.
The second takes what LEAF's `./preprocess.sh -s niid --sf 1.0 -k 0 -t sample --tf 0.8` made, which
`--dataset leaf --data-path` takes too. Both print how many writers and samples there are, and how many were published.
"""

from pathlib import Path
from typing import Annotated

import typer

from persephonee.commands.terminal import run_program
from persephonee.data_partitions.errors import DataError, MissingDataError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.data_partitions.sources.femnist import HUB_NAME
from persephonee.data_partitions.sources.published_sets import FEMNIST_OF_LEAF, FEMNIST_OF_THE_HUB, PublishedSet
from persephonee.experiments.data.publisher_files import Download


def fetch(out: Path) -> None:
    """Fetch the hub's parquet files, whose checksums its client compares, into `out`.

    Raises:
        MissingDataError: there is no network, or the hub refuses.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(HUB_NAME, repo_type="dataset", allow_patterns=["data/*.parquet"], local_dir=out)
    # httpx's errors, the hub's and OSError have no other base
    except Exception as error:
        raise MissingDataError(
            f"{HUB_NAME} cannot be fetched ({type(error).__name__}): connect to the network, or put the hub's parquet "
            f"files into {out}."
        ) from error


def counted(settings: DataSettings, published: PublishedSet) -> str:
    """Open the data and return a sentence with its numbers of writers and samples, and the published ones.

    Raises:
        DataError: what is missing or broken.
    """
    partitions = open_partitions(settings)
    found = (partitions.num_partitions, sum(partitions.counts))
    verdict = "as published" if found == (published.users, published.samples) else "which differs"
    return (
        f"{settings.data_path}: {found[0]:,} writers, {found[1]:,} samples, {partitions.num_classes} classes; "
        f"{published.name} was published with {published.users:,} writers and {published.samples:,} samples: {verdict}."
    )


def main(
    *,
    out: Annotated[Path | None, typer.Option(help="Folder of the hub's parquet files.")] = None,
    leaf: Annotated[Path | None, typer.Option(help="In place of it: LEAF's folder with train/ and test/.")] = None,
    download: Download = False,
) -> None:
    """Fetch FEMNIST, or open it where it lies, and compare it with what was published."""
    if (out is None) == (leaf is None):
        raise DataError("Give either --out, for the hub's files, or --leaf, for LEAF's.")
    if leaf is not None:
        typer.echo(counted(DataSettings(dataset="leaf", data_path=leaf), FEMNIST_OF_LEAF))
    elif out is not None:
        if download:
            fetch(out)
        typer.echo(counted(DataSettings(dataset="parquet", data_path=out), FEMNIST_OF_THE_HUB))


if __name__ == "__main__":
    run_program(main)
