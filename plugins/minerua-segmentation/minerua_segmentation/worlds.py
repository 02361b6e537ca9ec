"""Four small worlds that look as different as the field's data sets: camouflage, polyps, lesions, leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["WORLDS", "draw"]


def draw(world: str, number: int, *, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image of a world and its mask.

    Args:
        world: A name from `WORLDS`.
        number: Which image; the same world, number, size and seed give the same pixels.
        size: Height and width, in pixels.
        seed: Of everything random.

    Returns:
        The image, shape (size, size, 3), uint8; the mask, shape (size, size), bool, neither empty nor full.

    Example:
        >>> image, mask = draw("polyp", 3, size=32)
        >>> image.shape, mask.dtype.name, bool(mask.any())
        ((32, 32, 3), 'bool', True)
    """
    import numpy as np

    generator = np.random.Generator(np.random.Philox([seed, list(WORLDS).index(world), number]))
    image, mask = WORLDS[world](_Canvas(size, generator))
    noisy = image + generator.normal(0, 0.015, image.shape)
    return (noisy.clip(0, 1) * 255).round().astype(np.uint8), mask


class _Canvas:
    """What all worlds draw with: coordinates from -1 to 1, chance, clouds and outlines."""

    def __init__(self, size: int, generator: np.random.Generator) -> None:
        import numpy as np

        self.size, self.generator = size, generator
        steps = (np.arange(size) + 0.5) / size * 2 - 1
        self.y, self.x = np.meshgrid(steps, steps, indexing="ij")

    def uniform(self, low: float, high: float) -> float:
        """Returns a number."""
        return float(self.generator.uniform(low, high))

    def clouds(self, cells: int) -> np.ndarray:
        """Returns smooth noise, shape (size, size), about 0, with so many cells along a side."""
        import numpy as np

        coarse = self.generator.normal(0, 1, (cells + 2, cells + 2))
        places = np.linspace(0, cells + 1, self.size)
        along = np.stack([np.interp(places, np.arange(cells + 2), row) for row in coarse])
        return np.stack([np.interp(places, np.arange(cells + 2), column) for column in along.T]).T

    def radius(self, reach: float, lobes: Mapping[int, float], *, stretch: float = 1.0) -> np.ndarray:
        """Returns each pixel's distance from a place, 1 on an outline with lobes, shape (size, size).

        Args:
            reach: How far the place may be from the middle.
            lobes: How many → how deep, as a share of the radius.
            stretch: The longer half-axis by the shorter one.
        """
        import numpy as np

        x, y = self.x - self.uniform(-reach, reach), self.y - self.uniform(-reach, reach)
        turn = self.uniform(0, np.pi)
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        angle = np.arctan2(across, along)
        outline = 1 + sum(depth * np.cos(k * angle + self.uniform(0, 6.28)) for k, depth in lobes.items())
        return np.asarray(np.hypot(along / np.sqrt(stretch), across * np.sqrt(stretch)) / outline)

    def stripes(self, turn: float, waves: float) -> np.ndarray:
        """Returns a wavy pattern of stripes, from -1 to 1."""
        import numpy as np

        way = self.x * np.cos(turn) + self.y * np.sin(turn) + 0.12 * self.clouds(4)
        return np.asarray(np.sin(way * waves + self.uniform(0, 6.28)))


def _mixed(share: np.ndarray, low: tuple[float, ...], high: tuple[float, ...]) -> np.ndarray:
    """Returns colours between two, shape (size, size, 3)."""
    import numpy as np

    part = share[..., None].clip(0, 1)
    return np.asarray((1 - part) * np.array(low) + part * np.array(high))


def _camouflage(canvas: _Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Something of the same colours as what is around it; only its stripes run another way, and are finer."""
    import numpy as np

    far = canvas.radius(0.4, {2: 0.15, 3: 0.12, 5: 0.06}, stretch=canvas.uniform(1, 1.6))
    mask = far < canvas.uniform(0.35, 0.55)
    turn, waves = canvas.uniform(0, np.pi), canvas.uniform(10, 14)
    around = canvas.stripes(turn, waves)
    inside = canvas.stripes(turn + canvas.uniform(1.1, 2.0), waves * 1.5)
    pattern = 0.5 + 0.27 * np.where(mask, inside + 0.15, around) + 0.14 * canvas.clouds(7)
    image = _mixed(pattern, (0.22, 0.24, 0.12), (0.62, 0.58, 0.36))
    return image, mask


def _polyp(canvas: _Canvas) -> tuple[np.ndarray, np.ndarray]:
    """A round bump on wet reddish tissue with folds, lit from the camera, and glints that belong to nothing."""
    import numpy as np

    edge = canvas.uniform(0.3, 0.5)
    far = canvas.radius(0.45, {2: 0.06, 3: 0.04}, stretch=canvas.uniform(1, 1.7)) / edge
    mask = far < 1
    folds = np.abs(canvas.stripes(canvas.uniform(0, np.pi), canvas.uniform(4, 7))) ** 3
    light = 0.75 - 0.35 * (canvas.x**2 + canvas.y**2) - 0.25 * folds + 0.06 * canvas.clouds(6)
    bump = np.sqrt((1 - far**2).clip(0, 1))
    shade = np.where(mask, 0.42 + 0.28 * bump + 0.05 * canvas.clouds(9), light)
    image = _mixed(shade, (0.25, 0.05, 0.05), (0.95, 0.55, 0.48))
    image += 0.08 * mask[..., None] * np.array([0.2, 0.8, 0.6])
    glints = canvas.clouds(14) > 2.1
    return np.where(glints[..., None], 0.95, image), mask


def _lesion(canvas: _Canvas) -> tuple[np.ndarray, np.ndarray]:
    """A brown patch with a ragged soft edge on fair skin, under hairs, in a picture with dark corners."""
    import numpy as np

    edge = canvas.uniform(0.35, 0.6)
    far = canvas.radius(0.2, {2: 0.1, 5: 0.05, 7: 0.05, 11: 0.03}, stretch=canvas.uniform(1, 1.4)) / edge
    mask = far < 1
    skin = _mixed(0.5 + 0.2 * canvas.clouds(5), (0.82, 0.62, 0.52), (0.93, 0.76, 0.66))
    brown = _mixed(0.5 + 0.25 * canvas.clouds(8), (0.3, 0.17, 0.12), (0.62, 0.4, 0.28))
    soft = 1 / (1 + np.exp((far - 1) * canvas.uniform(9, 18)))
    image = (1 - soft[..., None]) * skin + soft[..., None] * brown
    for _ in range(int(canvas.generator.integers(0, 4))):
        way = canvas.uniform(0, np.pi)
        off = canvas.x * np.cos(way) + canvas.y * np.sin(way) + canvas.uniform(-0.3, 0.3) * (canvas.x - canvas.y) ** 2
        image[np.abs(off - canvas.uniform(-0.7, 0.7)) < 0.02] = (0.15, 0.1, 0.08)
    corner = (np.hypot(canvas.x, canvas.y) - canvas.uniform(1.05, 1.35)).clip(0, 0.3) / 0.3
    return image * (1 - 0.85 * corner[..., None]), mask


def _leaf(canvas: _Canvas) -> tuple[np.ndarray, np.ndarray]:
    """A leaf with lobes and veins, some of it gone yellow, on litter of all browns and a few greens."""
    import numpy as np

    edge = canvas.uniform(0.5, 0.75)
    lobes = int(canvas.generator.integers(3, 8))
    far = canvas.radius(0.2, {lobes: canvas.uniform(0.18, 0.32), 1: 0.1}, stretch=canvas.uniform(1, 1.5)) / edge
    mask = far < 1
    litter = _mixed(0.5 + 0.3 * canvas.clouds(10), (0.2, 0.14, 0.1), (0.66, 0.56, 0.44))
    moss = canvas.clouds(6) > 1.0
    litter[moss] = litter[moss] * np.array([0.7, 1.15, 0.6])
    veins = np.abs(canvas.stripes(canvas.uniform(0, np.pi), 22)) < 0.12
    green = _mixed(0.5 + 0.2 * canvas.clouds(5) + 0.25 * veins, (0.1, 0.3, 0.08), (0.42, 0.66, 0.25))
    yellow = canvas.clouds(4) > 1.1
    green[yellow] = _mixed(0.5 + 0.2 * canvas.clouds(9), (0.5, 0.4, 0.12), (0.8, 0.72, 0.3))[yellow]
    return np.where(mask[..., None], green, litter), mask


WORLDS: Mapping[str, Callable[[_Canvas], tuple[np.ndarray, np.ndarray]]] = {
    "camouflage": _camouflage,
    "polyp": _polyp,
    "lesion": _lesion,
    "leaf": _leaf,
}
"""Name → what draws it."""
