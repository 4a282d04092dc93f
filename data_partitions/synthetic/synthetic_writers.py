"""Writers that need no download (`--dataset synthetic-writers`): 62 characters drawn from strokes, FEMNIST's format.

Images: uint8 [N, 1, 28, 28], white paper = 255. Labels: FEMNIST's order, 0-9, A-Z, a-z. Sample counts follow LEAF's
FEMNIST (mean 226.8, standard deviation 88.9, peaks near 172 and 340). What it is and what it is not:
docs/synthetic-writers.md.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from persephonee.data_partitions.errors import DataSettingsError
from persephonee.data_partitions.samples import UserSamples, check_index
from persephonee.data_partitions.synthetic.glyphs import CLASS_NAMES, Form, forms_of
from persephonee.data_partitions.synthetic.rasteriser import SIDE, draw
from persephonee.data_partitions.synthetic.writer_style import Floats, WriterStyle, draw_writer_style, habitual_points

MAX_WRITERS = 3550
MAX_EXTENT_PX = 25.0
# Letters in the proportions of NIST's forms, roughly, in thousands; digits are half of everything.
_LETTERS = "A7 B4 C12 D5 E6 F11 G3 H4 I14 J4 K3 L6 M11 N10 O29 P10 Q3 R6 S24 T12 U15 V5 W5 X3 Y6 Z3 " + (
    "a12 b6 c3 d11 e29 f3 g4 h10 i3 j2 k3 l18 m3 n13 o3 p3 q3 r16 s3 t21 u3 v3 w3 x3 y3 z3"
)
# streams of random numbers of one writer, which must not share numbers
_COUNT, _HAND, _SAMPLES = range(3)


class SyntheticWriters:
    """Writers drawn from a population of hands; a writer depends on (seed, number) alone.

    Args:
        num_writers: how many, in [1, 3550].
        seed: another seed gives other writers.

    Raises:
        DataSettingsError: num_writers out of range, or a negative seed.
    """

    name = "synthetic-writers"
    num_classes = len(CLASS_NAMES)
    class_names: tuple[str, ...] | None = CLASS_NAMES
    image_shape = (1, SIDE, SIDE)

    def __init__(self, *, num_writers: int = MAX_WRITERS, seed: int = 0) -> None:
        if not 1 <= num_writers <= MAX_WRITERS:
            raise DataSettingsError(f"num_writers={num_writers} is not in [1, {MAX_WRITERS}].")
        if seed < 0:
            raise DataSettingsError(f"seed={seed} is negative; give 0 or more.")
        self.num_partitions = num_writers
        self._seed = seed
        # the seed is part of the id: writer 7 of one seed is another person than writer 7 of the next
        self.client_ids = tuple(f"s{seed}w{writer:04d}" for writer in range(num_writers))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Samples per writer."""
        return tuple(self._count(writer) for writer in range(self.num_partitions))

    def load_partition(self, index: int) -> UserSamples:
        """Draw all samples of writer `client_ids[index]`."""
        return self.writer_changes_hand(index, hand=0)

    def writer_changes_hand(self, index: int, hand: int, count: int | None = None) -> UserSamples:
        """Draw the writer's samples in another hand: an injured wrist, a new device, somebody else's pen.

        Args:
            index: the writer, in [0, num_partitions).
            hand: 0 is the hand of `load_partition`; each other number is another hand, unlike the first.
            count: how many samples; None takes the writer's usual number. A larger count begins with other samples.

        Returns:
            Samples under the same client id; the domain is `hand=1` and so on, None for hand 0.
        """
        check_index(index, self.num_partitions)
        generator = self._generator(index, _SAMPLES, hand)
        number = self._count(index) if count is None else count
        labels = generator.choice(self.num_classes, size=number, p=_class_fractions())
        images = write(self.hand(index, hand), labels, generator)
        return UserSamples(
            client_id=self.client_ids[index],
            images=images[:, None],
            labels=labels.astype(np.int64),
            domain=f"hand={hand}" if hand else None,
        )

    def hand(self, index: int, hand: int = 0) -> WriterStyle:
        """Return the habits behind a writer's hand."""
        return draw_writer_style(self._generator(index, _HAND, hand))

    def _generator(self, writer: int, purpose: int, hand: int = 0) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self._seed, writer, purpose, hand]))

    def _count(self, writer: int) -> int:
        """Draw from two bells whose mixture has LEAF's mean and standard deviation."""
        generator = self._generator(writer, _COUNT)
        centre, spread = (172, 45) if generator.random() < 0.674 else (340, 32)
        return int(np.clip(round(generator.normal(centre, spread)), 12, 480))


def write(hand: WriterStyle, labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Write characters in a hand, each sample a little different.

    Args:
        hand: the lasting habits.
        labels: [N], in [0, 62).
        generator: the source of what differs between samples.

    Returns:
        [N, 28, 28], white paper = 255.
    """
    count = len(labels)
    if not count:
        return np.empty((0, SIDE, SIDE), dtype=np.uint8)
    chosen = _choose(hand, labels, generator)
    sizes = np.asarray([len(points) for points, _ in chosen])
    starts = np.cumsum(sizes) - sizes
    points = np.concatenate([points for points, _ in chosen])
    points = points + generator.normal(0.0, hand.unsteadiness, points.shape).astype(np.float32)
    placed = _place(points, np.repeat(np.arange(count), sizes), starts, hand, generator)
    pieces = np.concatenate([form.pieces + start for (_, form), start in zip(chosen, starts, strict=True)])
    image_of = np.repeat(np.arange(count), [len(form.pieces) for _, form in chosen])
    radius = np.clip(hand.radius_px * np.exp(generator.normal(0.0, 0.07, count)), 0.5, 3.5).astype(np.float32)
    shake = np.concatenate([np.full((count, 1), hand.tremor_px), generator.uniform(0, 2 * np.pi, (count, 2))], axis=1)
    ink = draw(placed, pieces, image_of, radius, hand.tension, shake.astype(np.float32))
    return np.rint(255 * (1 - ink)).astype(np.uint8)


def _choose(hand: WriterStyle, labels: NDArray[np.int64], generator: np.random.Generator) -> list[tuple[Floats, Form]]:
    """Return the habitual control points and the form of every sample; a slip takes any form of the character."""
    known: dict[tuple[str, str], tuple[Floats, Form]] = {}
    chosen = []
    for label, slips in zip(labels, generator.random(len(labels)) < hand.slip_rate, strict=True):
        character = CLASS_NAMES[label]
        name = str(generator.choice(sorted(forms_of(character)))) if slips else hand.forms[character]
        if (character, name) not in known:
            known[character, name] = habitual_points(hand, character, name)
        chosen.append(known[character, name])
    return chosen


def _place(
    points: Floats,
    sample: NDArray[np.int64],
    starts: NDArray[np.int64],
    hand: WriterStyle,
    generator: np.random.Generator,
) -> Floats:
    """Slant, turn, scale and centre the control points; return pixels, [P, 2]."""
    count = len(starts)
    height = hand.capital_px * np.exp(generator.normal(0.0, 0.07, count))
    width = height * hand.aspect * np.exp(generator.normal(0.0, 0.05, count))
    slant = hand.slant + generator.normal(0.0, 0.05, count)
    angle = hand.rotation + generator.normal(0.0, 0.05, count)
    x = (points[:, 0] * width[sample]) + points[:, 1] * (slant * height)[sample]
    y = -points[:, 1] * height[sample]
    cosine, sine = np.cos(angle)[sample], np.sin(angle)[sample]
    turned = np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1)
    low, high = np.minimum.reduceat(turned, starts), np.maximum.reduceat(turned, starts)
    extent = np.maximum((high - low).max(axis=1), 1e-6)
    shrink = np.minimum(1.0, MAX_EXTENT_PX / extent)[sample, None]
    centre = SIDE / 2 + generator.normal(0.0, 0.6, (count, 2))
    placed = (turned - ((low + high) / 2)[sample]) * shrink + centre[sample]
    return np.asarray(placed, dtype=np.float32)


def _class_fractions() -> NDArray[np.float64]:
    letters = np.asarray([float(word[1:]) for word in _LETTERS.split()])
    return np.concatenate([np.full(10, 0.05), 0.5 * letters / letters.sum()])
