"""The Python files of a new app."""

PACKAGE = '''"""A Flower app that personalises the early exits of a CNN of its own, with persephonee."""
'''

CNN = '''"""The CNN. Replace it by yours: any convolutional network that torch.fx can trace and that returns logits."""

from torch import nn


def build(num_classes: int, in_channels: int) -> nn.Module:
    """Return the untrained network; `num_classes` and `in_channels` are those of the data."""
    return nn.Sequential(
        *(nn.Conv2d(in_channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(64 * 9, num_classes)),
    )
'''

USERS = '''"""The data: who has which images. Replace `images_of` by yours, and run `python -m <<package>>.users` once.

It writes users.parquet with an image, a user and a label in each row. A device reads a file of the same kind, with its
own user alone.
"""

import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

USERS = [f"user-{number:02d}" for number in range(16)]
CLASSES = ["square", "circle", "triangle", "cross"]
SIDE = 24


def images_of(user: str) -> list[tuple[Image.Image, str]]:
    """Return a user's images, all of one size, with their classes; these users draw shapes, each by their own hand."""
    hand = random.Random(user)
    width, ink, slant = hand.randint(1, 3), hand.randint(0, 110), hand.uniform(-25, 25)
    found = []
    for number in range(80):
        shape, size = CLASSES[number % len(CLASSES)], hand.randint(5, 9)
        page = Image.new("L", (SIDE, SIDE), 255)
        draw, x, y = ImageDraw.Draw(page), hand.randint(9, 14), hand.randint(9, 14)
        box = (x - size, y - size, x + size, y + size)
        if shape == "square":
            draw.rectangle(box, outline=ink, width=width)
        elif shape == "circle":
            draw.ellipse(box, outline=ink, width=width)
        elif shape == "triangle":
            draw.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], outline=ink, width=width)
        else:
            draw.line([box[:2], box[2:]], fill=ink, width=width)
            draw.line([(box[0], box[3]), (box[2], box[1])], fill=ink, width=width)
        found.append((page.rotate(slant + hand.uniform(-10, 10), fillcolor=255), shape))
    return found


def write(path: Path) -> Path:
    """Write all users into a parquet file."""
    rows: dict[str, list[object]] = {"image": [], "user": [], "label": []}
    for user in USERS:
        for image, label in images_of(user):
            png = io.BytesIO()
            image.save(png, "PNG")
            rows["image"].append({"bytes": png.getvalue(), "path": None})
            rows["user"].append(user)
            rows["label"].append(label)
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({**rows, "image": pa.array(rows["image"], image_type)}), path)
    return path


if __name__ == "__main__":
    print(write(Path(__file__).resolve().parent.parent / "users.parquet"))
'''

SERVER_APP = '''"""The server's side: persephonee's own."""

from persephonee.fl_app.server_side.server_app import app

__all__ = ["app"]
'''

CLIENT_APP = '''"""The client's side: persephonee's own."""

from persephonee.fl_app.client_side.client_app import app

__all__ = ["app"]
'''
