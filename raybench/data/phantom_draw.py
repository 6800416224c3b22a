"""How a phantom is drawn: anatomy, exposure and noise first, then lesions on top.

Anatomy is laid down in canonical coordinates (`x` to the right, `y` down, both 0 to 1) as layers of
density, turned into grey levels by an exposure curve, and only then given lesions, so that a lesion
changes its own pixels and no others. The shapes are schematic; no anatomical atlas stands behind
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raybench.data.phantom_canvas import Canvas, Plane, Points, blur, closed_curve, smooth_noise
from raybench.types import Gray, Mask

WHITE = 232.0
"""The brightest grey level of the anatomy. What is above belongs to lesions and markers."""

MIN_CHANGE = 2.0
"""Grey levels that a lesion adds at the least, everywhere inside its mask."""

CORNER = 0.13
"""The two upper corners, as a share of the width, that no lung ever enters."""

_RIGHT_LUNG = (
    (0.380, 0.140), (0.440, 0.190), (0.458, 0.310), (0.450, 0.440), (0.436, 0.560),
    (0.425, 0.675), (0.345, 0.655), (0.255, 0.685), (0.168, 0.780), (0.172, 0.640),
    (0.190, 0.470), (0.235, 0.300), (0.305, 0.180),
)  # fmt: skip
_LEFT_LUNG = (
    (0.620, 0.140), (0.695, 0.180), (0.765, 0.300), (0.810, 0.470), (0.828, 0.640),
    (0.836, 0.790), (0.760, 0.715), (0.700, 0.700), (0.672, 0.620), (0.612, 0.500),
    (0.568, 0.410), (0.578, 0.300), (0.560, 0.200),
)  # fmt: skip
_HEART = (
    (0.465, 0.400), (0.430, 0.540), (0.425, 0.660), (0.480, 0.735), (0.610, 0.745),
    (0.705, 0.715), (0.680, 0.610), (0.615, 0.490), (0.550, 0.400),
)  # fmt: skip
_BODY = (
    (0.420, -0.10), (0.425, 0.035), (0.330, 0.085), (0.180, 0.110), (0.060, 0.190), (0.020, 0.340),
    (0.085, 0.480), (0.105, 0.700), (0.095, 1.150), (0.905, 1.150), (0.895, 0.700), (0.915, 0.480),
    (0.980, 0.340), (0.940, 0.190), (0.820, 0.110), (0.670, 0.085), (0.575, 0.035), (0.580, -0.10),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scene:
    """One anatomy, exposed, without lesions.

    Attributes:
        clean: grey levels before sensor noise, float32 `[size, size]`, 0 to `WHITE`.
        noisy: the same with noise, float32 `[size, size]`, 0 to `WHITE`.
        lungs: the lung on the image's left (the patient's right), then the other.
    """

    clean: Plane
    noisy: Plane
    lungs: tuple[Mask, Mask]

    @property
    def lung_mask(self) -> Mask:
        """Both lungs, bool `[size, size]`."""
        return self.lungs[0] | self.lungs[1]


def _lung_outlines(rng: np.random.Generator) -> tuple[Points, Points]:
    """Two control polygons: their own widths, apices, diaphragms, and a little of everything."""
    outlines = []
    heart = rng.uniform(-0.02, 0.03)
    depth = rng.uniform(-0.06, 0.03)
    for side, template in enumerate((_RIGHT_LUNG, _LEFT_LUNG)):
        points = np.array(template)
        low = np.clip((points[:, 1] - 0.45) / 0.3, 0, 1)
        points[:, 1] += low * (depth + rng.uniform(-0.03, 0.03))
        points[:, 1] += (1 - low) * rng.uniform(-0.02, 0.03)
        lateral = np.clip(np.abs(points[:, 0] - 0.5) / 0.33, 0, 1)
        points[:, 0] += (1 if side else -1) * lateral * rng.uniform(-0.05, 0.025)
        if side:
            points[7:10, 0] += heart
        outlines.append(points + rng.normal(0, 0.005, points.shape))
    return outlines[0], outlines[1]


def _draw_lungs(canvas: Canvas, outlines: tuple[Points, Points]) -> tuple[Mask, Mask]:
    masks = []
    for outline in outlines:
        layer = canvas.blank()
        canvas.fill(layer, closed_curve(outline), smooth=False)
        corner = int(np.ceil(CORNER * canvas.size)) + 1
        layer[:corner, :corner] = 0
        layer[:corner, -corner:] = 0
        masks.append(layer > 0)
    return masks[0], masks[1] & ~masks[0]


def _ribs(canvas: Canvas, rng: np.random.Generator) -> Gray:
    """Nine pairs of posterior ribs with a dense rim, and fainter, steeper anterior ends."""
    layer = canvas.blank()
    gap, top = rng.uniform(0.066, 0.080), rng.uniform(0.13, 0.17)
    slope, width = rng.uniform(0.04, 0.10), rng.uniform(0.020, 0.027)
    number, side = np.arange(9)[:, None, None], np.array([-1, 1])[:, None]
    t = np.linspace(0, 1, 14)
    y = top + number * gap + rng.normal(0, 0.003, (9, 2, 1))
    reach = 0.20 + 0.155 * np.sqrt(np.minimum(1.0, (number + 0.6) / 5))
    x = 0.5 + side * (0.035 + reach * np.sin(t * np.pi / 2)) + np.zeros_like(y)
    back = np.stack([x, y - 0.035 * np.sin(np.pi * t) + slope * t**2], axis=-1)
    fall = y[:7] + 0.11 + slope - 0.17 * (1 - t[4:]) ** 0.8
    canvas.stroke(layer, np.stack([x[:7, :, 4:], fall], axis=-1), width * 0.9, 70)
    canvas.stroke(layer, back, width, 255)
    canvas.stroke(layer, back, width * 0.55, 175)
    return layer


def _bones(canvas: Canvas, rng: np.random.Generator) -> Gray:
    """Spine with its discs, clavicles and the edges of the shoulder blades."""
    layer = canvas.blank()
    height = rng.uniform(0.046, 0.056)
    for top in (-0.05 + height * np.arange(24)).tolist():
        low = top + height * 0.74
        box = [[0.468, top], [0.532, top], [0.532, low], [0.468, low]]
        canvas.fill(layer, np.array(box), 130)
    t = np.linspace(0, 1, 12)
    lift = rng.uniform(-0.03, 0.03)
    for side in (-1, 1):
        y = 0.185 + lift - 0.075 * t + 0.02 * np.sin(2 * np.pi * t) + rng.normal(0, 0.006)
        collar = np.stack([0.5 + side * (0.045 + 0.27 * t), y], axis=1)
        canvas.stroke(layer, collar, 0.026, 235)
        canvas.stroke(layer, collar, 0.013, 165)
        blade = np.stack([0.5 + side * (0.40 - 0.07 * np.sin(t * 2)), 0.15 + 0.27 * t], axis=1)
        canvas.stroke(layer, blade, 0.016, 90)
        arm = np.array([[0.5 + side * 0.44, 0.19], [0.5 + side * 0.49, 0.52]])
        canvas.stroke(layer, arm, 0.05, 120)
    return layer


def _vessels(canvas: Canvas, rng: np.random.Generator) -> Gray:
    """Two trees that fan out of the hila, fork, and thin towards the edge of the lungs."""
    layer = canvas.blank()
    t = np.linspace(0, 1, 8)
    for side in (-1, 1):
        root = np.array([0.5 + side * 0.065, 0.42]) + rng.normal(0, 0.01, 2)
        angle = np.linspace(-1.2, 1.3, 6)[:, None] + rng.normal(0, 0.14, (6, 1))
        length = rng.uniform(0.16, 0.34, (6, 1))
        swing = angle + rng.normal(0, 0.5, (6, 1)) * t + rng.normal(0, 0.2, (6, 1)) * np.sin(5 * t)
        start = (root + rng.normal(0, 0.018, (6, 2)))[:, None]
        paths = start + _way(side, swing, length * t)
        fork, turn = rng.integers(2, 7, (6, 4)), rng.normal(0, 0.7, (6, 4, 1))
        swing = angle[:, None] + turn * (1 + 0.4 * t) + 0.4 * np.sign(turn)
        twigs = paths[np.arange(6)[:, None], fork][:, :, None]
        twigs = twigs + _way(side, swing, 0.4 * length[:, None] * t)
        canvas.stroke(layer, twigs, 0.004, 105)
        canvas.stroke(layer, paths[:, 4:], 0.005, 150)
        canvas.stroke(layer, paths[:, :5], 0.009, 200)
        canvas.stroke(layer, root + np.array([[0, -0.05], [side * 0.012, 0], [0, 0.06]]), 0.035, 90)
    return layer


def _way(side: int, angle: Points, far: Points) -> Points:
    """Steps `[..., n, 2]` from the hilum's side of the lung outwards."""
    return np.stack([side * far * np.cos(angle), 1.1 * far * np.sin(angle)], axis=-1)


def _soft_tissue(
    canvas: Canvas, rng: np.random.Generator, outlines: tuple[Points, Points]
) -> Plane:
    """Torso, abdomen below the diaphragm, mediastinum and heart: density, float32, 0 to about 1."""
    body, belly, middle, heart = (canvas.blank() for _ in range(4))
    canvas.fill(body, closed_curve(np.array(_BODY)))
    right, left = outlines
    domes = np.vstack([right[8:4:-1], left[7:4:-1]])
    ends = [[0.93, domes[-1, 1] + 0.05], [0.93, 1.2], [0.07, 1.2], [0.07, domes[0, 1] + 0.05]]
    canvas.fill(belly, np.vstack([domes, ends]))
    wide = rng.uniform(0.045, 0.07)
    edge = [[0.5 - wide, -0.05], [0.5 + wide, -0.05], [0.56 + wide / 3, 0.31], [0.57, 1.1]]
    canvas.fill(middle, np.array([*edge, [0.44, 1.1], [0.455, 0.3]]))
    canvas.fill(heart, closed_curve(np.array(_HEART) + rng.normal(0, 0.006, (len(_HEART), 2))))
    weight = rng.uniform(0.8, 1.2, 4).tolist()
    return np.asarray(
        0.56 * weight[0] * canvas.soft(body, 0.014)
        + 0.13 * weight[2] * canvas.soft(middle, 0.012)
        + np.maximum(
            0.17 * weight[1] * canvas.soft(belly, 0.010),
            0.13 * weight[3] * canvas.soft(heart, 0.008),
        ),
        np.float32,
    )


def draw_scene(size: int, rng: np.random.Generator) -> Scene:
    """Draw one anatomy, exposed and noisy. Nothing here knows of classes.

    Args:
        size: width and height in pixels.
        rng: the anatomy's own stream.
    """
    canvas = Canvas(size, rng)
    outlines = _lung_outlines(rng)
    lungs = _draw_lungs(canvas, outlines)
    both = (lungs[0] | lungs[1]).astype(np.uint8) * np.uint8(255)
    near, far = canvas.soft(both, 0.004), canvas.soft(both, 0.045)
    density = _soft_tissue(canvas, rng, outlines)
    weight = rng.uniform(0.8, 1.2, 5).tolist()
    air = near * (0.55 + 0.45 * far)
    density -= 0.42 * weight[0] * air
    density += 0.095 * weight[1] * canvas.soft(_ribs(canvas, rng), 0.004)
    density += 0.13 * weight[2] * canvas.soft(_bones(canvas, rng), 0.004)
    density += 0.13 * weight[3] * canvas.soft(_vessels(canvas, rng), 0.0035) * near
    density += 0.016 * weight[4] * smooth_noise(rng, size, 6, octaves=4)
    clean = _expose(density, canvas, rng)
    grain = rng.standard_normal((size, size), dtype=np.float32) * np.float32(rng.uniform(2, 5))
    noisy = np.clip(clean + grain, 0, np.float32(WHITE))
    return Scene(clean, noisy, lungs)


def _expose(density: Plane, canvas: Canvas, rng: np.random.Generator) -> Plane:
    """Grey levels: black and white points, gamma, an uneven beam and the sharpness all differ."""
    low, high = rng.uniform(4, 28), rng.uniform(190, 230)
    gamma = rng.uniform(0.8, 1.25)
    tilt = rng.uniform(-0.06, 0.06, 2)
    ramp = np.linspace(-1, 1, canvas.size, dtype=np.float32)
    beam = (1 + tilt[0] * ramp[None, :] + tilt[1] * ramp[:, None]).astype(np.float32)
    light = np.clip(density * beam, 0, 1.05) ** np.float32(gamma)
    sharp: Plane = blur(light, rng.uniform(0.0008, 0.0032) * canvas.size)
    sharp *= np.float32(high - low)
    sharp += np.float32(low)
    return np.clip(sharp, 0, np.float32(WHITE), out=sharp)
