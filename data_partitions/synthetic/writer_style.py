"""A hand: everything that one writer does in the same way every time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persephonee.data_partitions.synthetic.glyphs import CLASS_NAMES, FIRST_SMALL, Form, choose_forms, forms_of

Floats = NDArray[np.float32]
NOMINAL_X_HEIGHT = 0.55


@dataclass(frozen=True, kw_only=True)
class WriterStyle:
    """The habits of one writer; lengths in capital heights unless the name says pixels."""

    forms: dict[str, str]
    """The form of each character."""

    slant: float
    """Shear to the right per unit of height."""

    rotation: float
    """Radians."""

    aspect: float
    """Width over the skeleton's width."""

    capital_px: float
    """Height of a capital in pixels."""

    x_height: float
    """Height of a small letter without ascender, in (0, 1)."""

    ascender: float
    """Height of an ascender."""

    descender: float
    """Depth of a descender over the skeleton's."""

    digit_scale: float
    """Height of a digit."""

    radius_px: float
    """Half the stroke width in pixels."""

    tension: float
    """Roundness: 0 is angular, 0.5 is round, beyond it curves bulge."""

    tremor_px: float
    """Amplitude of the tremor in pixels."""

    unsteadiness: float
    """Standard deviation of a control point from one sample to the next."""

    slip_rate: float
    """Fraction of samples in another form than the usual one."""

    warp: Floats
    """[2, 4], a slow bend of the plane that all glyphs share."""

    offsets_seed: int
    """Where the lasting deviations of each glyph from its skeleton start from."""


def draw_writer_style(generator: np.random.Generator) -> WriterStyle:
    """Draw a hand from the population of hands."""
    normal, uniform = generator.normal, generator.uniform
    return WriterStyle(
        forms=choose_forms(generator),
        slant=float(np.clip(normal(0.10, 0.17), -0.35, 0.55)),
        rotation=float(normal(0.0, 0.06)),
        aspect=float(np.clip(np.exp(normal(0.0, 0.16)), 0.65, 1.5)),
        capital_px=float(np.clip(normal(17.0, 3.0), 11.0, 23.0)),
        x_height=float(uniform(0.55, 0.87)),
        ascender=float(uniform(0.85, 1.12)),
        descender=float(uniform(0.65, 1.2)),
        digit_scale=float(uniform(0.8, 1.05)),
        radius_px=float(np.clip(np.exp(normal(np.log(1.0), 0.28)), 0.6, 2.1)),
        tension=float(uniform(0.28, 0.60)),
        tremor_px=float(np.clip(np.exp(normal(np.log(0.12), 0.7)), 0.0, 0.6)),
        unsteadiness=float(uniform(0.012, 0.045)),
        slip_rate=float(uniform(0.0, 0.10)),
        warp=normal(0.0, 0.022, (2, 4)).astype(np.float32),
        offsets_seed=int(generator.integers(2**62)),
    )


def habitual_points(hand: WriterStyle, character: str, form_name: str) -> tuple[Floats, Form]:
    """Return a glyph's control points [P, 2] as this hand usually sets them, in capital heights, and its form."""
    form = forms_of(character)[form_name]
    own = np.random.default_rng([hand.offsets_seed, CLASS_NAMES.index(character), len(form_name), ord(form_name[0])])
    stretch = np.exp(own.normal(0.0, 0.11, 2))
    points = form.points * stretch + own.normal(0.0, 0.036, form.points.shape)
    if CLASS_NAMES.index(character) >= FIRST_SMALL:
        points = _resize_small(points, hand)
    elif character.isdigit():
        points = points * hand.digit_scale
    x, y = points[:, :1], points[:, 1:]
    waves = np.concatenate([np.sin(3 * x), np.cos(3 * x), np.sin(3 * y), np.cos(3 * y)], axis=1)
    return (points + waves @ hand.warp.T).astype(np.float32), form


def _resize_small(points: NDArray[np.float64], hand: WriterStyle) -> NDArray[np.float64]:
    """Set x-height, ascenders and descenders to the hand's; widths follow the x-height."""
    x, y = points[:, 0], points[:, 1]
    scale = hand.x_height / NOMINAL_X_HEIGHT
    above = hand.x_height + (y - NOMINAL_X_HEIGHT) * (hand.ascender - hand.x_height) / (1 - NOMINAL_X_HEIGHT)
    below = y * hand.descender
    height = np.where(y > NOMINAL_X_HEIGHT, above, np.where(y < 0, below, y * scale))
    return np.stack([x * scale, height], axis=1)
