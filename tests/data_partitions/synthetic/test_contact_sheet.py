import sys

import numpy as np
from PIL import Image

from persephonee.data_partitions.synthetic.contact_sheet import main


def test_the_sheet_holds_every_character_of_every_writer_named(tmp_path, monkeypatch):
    path = tmp_path / "new" / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["contact_sheet", "--out", str(path), "--writers", "5", "9", "--seed", "3"])
    main()
    with Image.open(path) as image:
        pixels = np.asarray(image)
    # two writers of two rows of 31 characters of 28 px, a gap of 12 px between them, drawn twice as large
    assert pixels.shape == (2 * (4 * 28 + 12), 2 * 31 * 28)
    cells = np.concatenate([pixels[:112], pixels[136:]]).reshape(4, 56, 31, 56)
    assert (cells.min(axis=(1, 3)) < 128).all()
