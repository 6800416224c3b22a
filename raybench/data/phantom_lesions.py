"""Lesions and markers of the phantoms: what is added to a finished scene, and exactly where."""

from __future__ import annotations

import cv2
import numpy as np

from raybench.data.phantom_canvas import Plane, smooth_noise
from raybench.data.phantom_draw import CORNER, MIN_CHANGE, Scene
from raybench.types import Gray, Mask

_ZONES = ((0.10, 0.40), (0.36, 0.68), (0.62, 0.98))
"""Upper, middle and lower zone of a lung, as shares of its height."""

_EDGE = 0.14
"""The opacity at which a lesion ends."""


def ground_glass(scene: Scene, rng: np.random.Generator, contrast: float) -> Plane:
    """Several hazy patches of irregular shape along the outer edge of both lungs.

    Args:
        scene: the anatomy that is to be ill.
        rng: the lesions' own stream.
        contrast: opacity of the patches, 1 for the usual one.

    Returns:
        Grey levels to add, float32 `[size, size]`: at least `MIN_CHANGE` inside the lesions, which
        lie inside the lungs, and 0 elsewhere.
    """
    size = scene.clean.shape[0]
    wobble = smooth_noise(rng, size, 7, octaves=3)
    opacity = np.zeros_like(scene.clean)
    for lung in scene.lungs:
        for x, y in _peripheral_points(lung, rng, int(rng.integers(2, 5))):
            _lay_patch(opacity, (x, y), rng, wobble)
    mottled = opacity * (1 + 0.07 * smooth_noise(rng, size, 20, octaves=2))
    return _haze(scene, mottled, opacity > _EDGE * 0.5, contrast)


def consolidation(scene: Scene, rng: np.random.Generator, contrast: float) -> Plane:
    """One dense opacity that fills the upper, middle or lower zone of one lung.

    Arguments and returned grey levels are those of `ground_glass`.
    """
    size = scene.clean.shape[0]
    lung = scene.lungs[int(rng.integers(2))]
    rows = np.flatnonzero(lung.any(axis=1))
    top, height = float(rows[0]), float(rows[-1] - rows[0] + 1)
    low, high = (top + height * (z + rng.uniform(-0.03, 0.03)) for z in _ZONES[rng.integers(3)])
    y = np.arange(size, dtype=np.float32)[:, None]
    slope = np.float32(rng.uniform(-0.25, 0.25)) * (y.T - np.float32(np.nonzero(lung)[1].mean()))
    level = y + slope + np.float32(0.016 * size) * smooth_noise(rng, size, 6, octaves=2)
    blunt = np.float32(0.03 * size)
    opacity = np.clip(np.minimum(level - low, high - level) / blunt, 0, 1) * lung
    opacity = np.asarray(opacity * np.float32(rng.uniform(0.55, 0.8)), np.float32)
    mottled = opacity * (1 + 0.08 * smooth_noise(rng, size, 16, octaves=2))
    return _haze(scene, mottled, opacity > _EDGE * 0.5, contrast)


def _peripheral_points(
    lung: Mask, rng: np.random.Generator, count: int
) -> list[tuple[float, float]]:
    """Points near the outer and lower edge of a lung, spread over its height."""
    size = lung.shape[0]
    depth = cv2.distanceTransform(lung.astype(np.uint8), cv2.DIST_L2, 3) / size
    ys, xs = np.nonzero((depth > 0.018) & (depth < 0.075))
    inner = 0.5 * size
    far = np.abs(xs - inner)
    outer = far > np.quantile(far, 0.35)
    xs, ys = xs[outer], ys[outer]
    share = (np.arange(count) + rng.uniform(0.1, 0.9, count)) / count
    picks = (share**0.8 * (len(ys) - 1)).astype(int)
    return [(float(xs[i]), float(ys[i])) for i in picks]


def _lay_patch(
    opacity: Plane, at: tuple[float, float], rng: np.random.Generator, wobble: Plane
) -> None:
    """Raise the opacity by one patch: an ellipse, longer than wide, with an irregular edge."""
    size = opacity.shape[0]
    along, across = rng.uniform(0.07, 0.13) * size, rng.uniform(0.05, 0.085) * size
    angle, dense = rng.uniform(-0.5, 0.5), np.float32(rng.uniform(0.5, 0.85))
    # The field below is 0 from 1.54 radii on, so nothing is cut off at the window's border.
    (x0, x1), (y0, y1) = ((max(0, int(c - 1.6 * along)), int(c + 1.6 * along) + 2) for c in at)
    window = np.s_[y0:y1, x0:x1]
    view = opacity[window]
    y = (np.arange(y0, y0 + view.shape[0]) - at[1]).astype(np.float32)[:, None]
    x = (np.arange(x0, x0 + view.shape[1]) - at[0]).astype(np.float32)[None, :]
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    distance = np.hypot((x * cos + y * sin) / across, (y * cos - x * sin) / along)
    field = np.clip(1.1 - distance + 0.22 * np.clip(wobble[window], -2, 2), 0, 0.75) / 0.75
    np.maximum(view, dense * field * field * (3 - 2 * field), out=view)


def _haze(scene: Scene, opacity: Plane, inside: Mask, contrast: float) -> Plane:
    """Pull the clean image towards a bright veil: vessels fade with it, sensor noise stays."""
    low, high = (float(v) for v in np.quantile(scene.clean[::4, ::4], (0.05, 0.97)))
    veil = np.float32(low + 0.72 * (high - low))
    lift = np.float32(0.8 * contrast) * np.clip(opacity, 0, 1) * (veil - scene.clean)
    headroom = np.float32(253) - scene.noisy
    change = np.clip(lift, np.float32(MIN_CHANGE), headroom)
    return np.where(inside & scene.lung_mask, change, np.float32(0))


def draw_marker(size: int, place: int) -> Mask:
    """The glyph of the class in `place` (0, 1 or 2), bool `[size, size]`.

    It stands in the image's upper left corner, which no lung enters: a ring, a bar or a cross, so
    that mirroring does not turn one into another.
    """
    layer: Gray = np.zeros((size, size), np.uint8)
    near, far = round(0.03 * size), round((CORNER - 0.015) * size)
    middle, thick = (near + far) // 2, max(2, round(0.018 * size))
    if place == 0:
        cv2.circle(layer, (middle, middle), (far - near) // 2 - thick // 2, 255, thick)
    elif place == 1:
        cv2.line(layer, (near + thick, middle), (far - thick, middle), 255, thick)
    else:
        cv2.line(layer, (near + thick, near + thick), (far - thick, far - thick), 255, thick)
        cv2.line(layer, (near + thick, far - thick), (far - thick, near + thick), 255, thick)
    return layer > 0
