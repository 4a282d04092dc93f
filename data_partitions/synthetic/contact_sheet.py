"""A picture of four writers, every character once.

python -m persephonee.data_partitions.synthetic.contact_sheet --out FILE.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from persephonee.data_partitions.synthetic.glyphs import CLASS_NAMES
from persephonee.data_partitions.synthetic.rasteriser import SIDE
from persephonee.data_partitions.synthetic.synthetic_writers import SyntheticWriters, write

COLUMNS = 31
GAP_PX = 12


def contact_sheet(writers: SyntheticWriters, indices: Sequence[int], hand: int = 0) -> NDArray[np.uint8]:
    """Return one grey picture [H, W]: two rows of 31 characters per writer, 0-9, A-Z, a-z."""
    blocks = []
    for index in indices:
        labels = np.arange(len(CLASS_NAMES))
        images = write(writers.hand(index, hand), labels, np.random.default_rng([index, hand]))
        rows = images.reshape(-1, COLUMNS, SIDE, SIDE).transpose(0, 2, 1, 3).reshape(-1, COLUMNS * SIDE)
        blocks += [rows, np.full((GAP_PX, COLUMNS * SIDE), 255, dtype=np.uint8)]
    return np.concatenate(blocks[:-1])


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writers", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--hand", type=int, default=0)
    options = parser.parse_args()
    sheet = contact_sheet(SyntheticWriters(seed=options.seed), options.writers, options.hand)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).resize((2 * sheet.shape[1], 2 * sheet.shape[0]), Image.Resampling.LANCZOS).save(options.out)


if __name__ == "__main__":
    main()
