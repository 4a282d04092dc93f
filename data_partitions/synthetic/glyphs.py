"""The 62 glyphs as arrays, and the families of forms that one hand uses together.

Two hands may write the same shape for different characters (a bare stroke is one writer's 1 and another's l); one
hand keeps them apart. A family lists, for characters that look alike, the combinations in which they differ.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from persephonee.data_partitions.synthetic.glyph_skeletons import CAPITALS, DIGITS, SMALL

CLASS_NAMES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
FIRST_SMALL = CLASS_NAMES.index("a")

# Each combination is "character:form[/form...]"; a character that it leaves out takes any form.
FAMILIES: tuple[tuple[str, ...], ...] = (
    (
        "1:bare I:serif l:loop/hook",
        "1:flag/base I:bare l:loop/hook",
        "1:flag/base I:serif l:bare/hook/loop",
        "1:long 7:barred I:bare l:loop/hook",
        "1:long 7:barred I:serif l:bare",
    ),
    ("0:oval O:round", "0:oval O:round", "0:slashed", "0:round O:oval", "0:round O:oval"),
    ("5:hat", "5:hat", "5:stroke S:smooth/serif s:smooth/serif", "5:snake S:angular/serif s:angular/serif"),
    (
        "2:round/loop Z:plain/barred z:plain Q:tail",
        "2:round/loop Z:plain/barred z:plain/tailed Q:tail",
        "2:angular Z:barred z:barred Q:tail/two",
        "2:angular Z:curly z:barred/tailed Q:tail",
    ),
    ("9:straight g:hook/loop q:flick", "9:curved g:nine/loop q:plain/flick"),
    ("6:curved G:hook/shelf", "6:straight b:stem", "6:curved G:six b:stroke/stem"),
    ("u:stem v:pointed/round", "u:round v:pointed"),
    ("U:stem V:pointed/round", "U:round V:pointed"),
    ("4:open/closed", "4:slanted Y:pointed/slash y:straight"),
    ("e:plain", "e:plain", "e:round E:square"),
    ("N:pointed n:round", "N:pointed n:round", "N:round M:round n:pointed", "N:round n:round"),
)


@dataclass(frozen=True, eq=False)
class Form:
    """One way to write a character.

    The curve runs piece by piece: piece k leads from point `pieces[k, 1]` to `pieces[k, 2]`, and the points
    `pieces[k, 0]` and `pieces[k, 3]` before and after give it its direction.
    """

    points: NDArray[np.float32]
    """[P, 2], unit: capital height."""

    pieces: NDArray[np.int64]
    """[S, 4] indices into points."""


@cache
def forms_of(character: str) -> dict[str, Form]:
    """Return a character's forms by name."""
    skeletons = (DIGITS | CAPITALS | SMALL)[character]
    return {name: _parse(text) for name, text in skeletons.items()}


def _parse(text: str) -> Form:
    points: list[tuple[float, float]] = []
    pieces: list[tuple[int, int, int, int]] = []
    for stroke in text.split("|"):
        first = len(points)
        words = stroke.split()
        corners = {0, len(words) - 1} | {number for number, word in enumerate(words) if word.endswith("!")}
        for word in words:
            x, y = word.rstrip("!").split(",")
            points.append((float(x) / 100, float(y) / 100))
        for number in range(len(words) - 1):
            # at a corner the neighbour beyond it does not pull on the curve
            before = number if number in corners else number - 1
            after = number + 1 if number + 1 in corners else number + 2
            pieces.append((first + before, first + number, first + number + 1, first + after))
    return Form(np.asarray(points, dtype=np.float32), np.asarray(pieces, dtype=np.int64))


def choose_forms(generator: np.random.Generator) -> dict[str, str]:
    """Choose one form per character such that look-alikes of one hand differ."""
    chosen = {character: str(generator.choice(sorted(forms_of(character)))) for character in CLASS_NAMES}
    for family in FAMILIES:
        for entry in family[generator.integers(len(family))].split():
            character, names = entry.split(":")
            chosen[character] = str(generator.choice(names.split("/")))
    return chosen
