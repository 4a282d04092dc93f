"""Pen strokes become 28x28 images: curves are walked in small steps and every step leaves a round dab of ink."""

import numpy as np
from numpy.typing import NDArray

SIDE = 28
STEP_PX = 0.45
SHAKE_PERIOD_PX = 5.0
MARGIN_PX = 18

Floats = NDArray[np.float32]


def draw(
    points: Floats,
    pieces: NDArray[np.int64],
    image_of: NDArray[np.int64],
    radius: Floats,
    tension: float,
    shake: Floats,
) -> Floats:
    """Return the ink of several images at once.

    Args:
        points: control points of all images, [P, 2], in pixels, x to the right and y down, pixel centres at .5.
        pieces: [S, 4] indices into points, as in `glyphs.Form`.
        image_of: [S], the image in [0, N) that a piece belongs to.
        radius: [N], half the stroke width in pixels, at most 8.
        tension: 0 joins the points by straight lines, 0.5 by Catmull-Rom curves.
        shake: [N, 3], a tremor's amplitude in pixels, and its phase in radians across and down.

    Returns:
        [N, 28, 28], 0 is paper and 1 is ink.
    """
    dabs, dab_image = _walk(points[pieces], image_of, tension)
    amplitude, phases = shake[dab_image, :1], shake[dab_image, 1:]
    # across moves with the height and down with the place along the line, so that a stroke wavers about its course
    dabs = dabs + amplitude * np.sin(dabs[:, ::-1] * (2 * np.pi / SHAKE_PERIOD_PX) + phases)
    inside = np.all((dabs > -MARGIN_PX / 2) & (dabs < SIDE + MARGIN_PX / 2), axis=1)
    return _stamp(dabs[inside], dab_image[inside], radius)


def _walk(corners: Floats, image_of: NDArray[np.int64], tension: float) -> tuple[Floats, NDArray[np.int64]]:
    """Return points along the curves, about STEP_PX apart, [D, 2], and the image of each, [D]."""
    before, start, stop, after = (corners[:, index] for index in range(4))
    leave, arrive = tension * (stop - before), tension * (after - start)
    length = np.hypot(*(stop - start).T) * (1 + tension / 2)
    steps = np.maximum(1, np.ceil(length / STEP_PX)).astype(np.int64) + 1
    piece = np.repeat(np.arange(len(steps)), steps)
    within = np.arange(len(piece)) - np.repeat(np.cumsum(steps) - steps, steps)
    t = (within / (steps[piece] - 1)).astype(np.float32)[:, None]
    t2, t3 = t * t, t * t * t
    curve = (2 * t3 - 3 * t2 + 1) * start[piece] + (t3 - 2 * t2 + t) * leave[piece]
    curve += (3 * t2 - 2 * t3) * stop[piece] + (t3 - t2) * arrive[piece]
    return curve.astype(np.float32), image_of[piece]


def _stamp(dabs: Floats, dab_image: NDArray[np.int64], radius: Floats) -> Floats:
    """Return the images in which a pixel holds the darkest dab that reaches it; edges fade over one pixel."""
    wide = SIDE + 2 * MARGIN_PX
    canvas = np.zeros(len(radius) * wide * wide, dtype=np.float32)
    reach = int(np.ceil(radius.max()))  # pixels beyond it get no ink, soft edge included
    corner = np.floor(dabs).astype(np.int64) - reach
    offsets = np.arange(2 * reach + 1, dtype=np.int64)
    centres = (corner[:, :, None] + offsets + 0.5 - dabs[:, :, None]).astype(np.float32)
    distance = np.sqrt(centres[:, 1, :, None] ** 2 + centres[:, 0, None, :] ** 2)
    ink = np.clip(radius[dab_image][:, None, None] + 0.5 - distance, 0, 1).astype(np.float32)
    row = (corner[:, 1] + MARGIN_PX)[:, None] + offsets
    column = (corner[:, 0] + MARGIN_PX)[:, None] + offsets
    pixel = (dab_image[:, None] * wide + row)[:, :, None] * wide + column[:, None, :]
    touched = ink > 0
    np.maximum.at(canvas, pixel[touched], ink[touched])
    return canvas.reshape(-1, wide, wide)[:, MARGIN_PX : MARGIN_PX + SIDE, MARGIN_PX : MARGIN_PX + SIDE]
