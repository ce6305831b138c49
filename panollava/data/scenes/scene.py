"""What a scene of the built-in world is: coloured solids and discs at known directions, all from one seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
SHAPES = ("ball", "cube", "cone", "cylinder", "ring", "diamond")
SECTORS = (
    "ahead",
    "ahead right",
    "right",
    "behind right",
    "behind",
    "behind left",
    "left",
    "ahead left",
)
"""Names of the eight directions, clockwise from straight ahead; sector k is centred on yaw 45°·k."""
SECTOR_DEG = 360.0 / len(SECTORS)
HEIGHTS = {"high": 22.0, "level": 0.0, "low": -22.0}
"""Height word -> pitch of its centre in degrees."""
POLES = {"overhead": "light", "underfoot": "mat"}

YAW_JITTER_DEG = 7.0
PITCH_JITTER_DEG = 4.0
RADIUS_DEG = (12.0, 15.0)
POLE_RADIUS_DEG = (22.0, 28.0)
POLE_OFFSET_DEG = 8.0
SOLIDS = (3, 5)
POLE_CHANCE = 0.7

Split = Literal["train", "val", "test", "backbones"]
SPLIT_CODES: dict[str, int] = {"train": 0, "val": 1, "test": 2, "backbones": 3}
"""``backbones`` is what the shipped miniature models were trained on: none of the three splits users see."""


@dataclass(frozen=True)
class Solid:
    """A coloured solid that stands in one of the eight sectors."""

    colour: str
    shape: str
    sector: int
    height: str
    yaw_deg: float
    pitch_deg: float
    radius_deg: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Disc:
    """A coloured disc near a pole: a light overhead or a mat underfoot."""

    colour: str
    pole: str
    yaw_deg: float
    pitch_deg: float
    radius_deg: float

    @property
    def shape(self) -> str:
        return POLES[self.pole]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Backdrop:
    """Sky, floor and light. Colours are RGB in 0..255."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    floor: tuple[float, float, float]
    texture: Literal["plain", "checker", "stripes", "speckle"]
    texture_contrast: float
    texture_scale: float
    cloud_contrast: float
    sun_yaw_deg: float
    brightness: float
    noise_seed: int


@dataclass(frozen=True)
class Scene:
    """One scene. Solids stand in distinct sectors, clockwise from straight ahead, no two of one colour."""

    solids: tuple[Solid, ...]
    discs: tuple[Disc, ...]
    backdrop: Backdrop
    turn_deg: float = 0.0
    """How far the scene was rotated to the right since it was made."""

    @property
    def things(self) -> tuple[Solid | Disc, ...]:
        return (*self.solids, *self.discs)

    def at(self, sector: int) -> Solid | None:
        """The solid in a sector (counted modulo eight), if there is one."""
        return next((solid for solid in self.solids if solid.sector == sector % len(SECTORS)), None)

    def turned(self, turn_deg: float) -> Scene:
        """The same scene rotated to the right: what was ahead is then at yaw ``turn_deg``.

        Raises:
            ValueError: the angle is not a multiple of 45°, so that solids would have no sector.
        """
        steps = turn_deg / SECTOR_DEG
        if steps != round(steps):
            raise ValueError(f"turn_deg={turn_deg} is not a multiple of {SECTOR_DEG:g}: use 45, 90, 180, ...")
        solids = [
            replace(
                solid,
                sector=(solid.sector + round(steps)) % len(SECTORS),
                yaw_deg=wrap_deg(solid.yaw_deg + turn_deg),
            )
            for solid in self.solids
        ]
        return replace(
            self,
            solids=tuple(sorted(solids, key=lambda solid: solid.sector)),
            discs=tuple(replace(disc, yaw_deg=wrap_deg(disc.yaw_deg + turn_deg)) for disc in self.discs),
            turn_deg=self.turn_deg + turn_deg,
        )


def wrap_deg(angle: float) -> float:
    """The same angle in [-180, 180)."""
    return (angle + 180.0) % 360.0 - 180.0


def scene_at(seed: int, split: Split, index: int) -> Scene:
    """Scene `index` of a split: the same arguments give the same scene, and no two splits share one."""
    return draw_scene(np.random.default_rng(np.random.SeedSequence([seed, SPLIT_CODES[split], index])))


def draw_scene(rng: np.random.Generator) -> Scene:
    """A scene out of a random generator."""
    count = int(rng.integers(SOLIDS[0], SOLIDS[1] + 1))
    sectors = sorted(rng.choice(len(SECTORS), size=count, replace=False).tolist())
    solids = []
    for sector, (colour, shape) in zip(sectors, _draw_looks(rng, count), strict=True):
        height = str(rng.choice(list(HEIGHTS)))
        solids.append(
            Solid(
                colour=colour,
                shape=shape,
                sector=sector,
                height=height,
                yaw_deg=wrap_deg(sector * SECTOR_DEG + rng.uniform(-YAW_JITTER_DEG, YAW_JITTER_DEG)),
                pitch_deg=HEIGHTS[height] + rng.uniform(-PITCH_JITTER_DEG, PITCH_JITTER_DEG),
                radius_deg=rng.uniform(*RADIUS_DEG),
            )
        )
    discs = []
    for pole in POLES:
        if rng.random() < POLE_CHANCE:
            pitch = 90.0 - rng.uniform(0.0, POLE_OFFSET_DEG)
            discs.append(
                Disc(
                    colour=str(rng.choice(COLOURS)),
                    pole=pole,
                    yaw_deg=rng.uniform(-180.0, 180.0),
                    pitch_deg=pitch if pole == "overhead" else -pitch,
                    radius_deg=rng.uniform(*POLE_RADIUS_DEG),
                )
            )
    return Scene(solids=tuple(solids), discs=tuple(discs), backdrop=_draw_backdrop(rng))


def _draw_looks(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """(colour, shape) pairs: colours differ, so that each solid can be named; shapes repeat, to be counted."""
    colours = [COLOURS[index] for index in rng.permutation(len(COLOURS))[:count]]
    shapes: list[str] = []
    for _ in range(count):
        repeat = shapes and rng.random() < 0.4
        shapes.append(str(rng.choice(shapes if repeat else SHAPES)))
    return list(zip(colours, shapes, strict=True))


def _draw_backdrop(rng: np.random.Generator) -> Backdrop:
    horizon = _muted(rng, 90.0, 165.0)
    zenith = _muted(rng, 60.0, 140.0)
    return Backdrop(
        zenith=zenith,
        horizon=horizon,
        floor=_muted(rng, 55.0, 140.0),
        texture=rng.choice(["plain", "checker", "stripes", "speckle"]).item(),
        texture_contrast=rng.uniform(0.05, 0.25),
        texture_scale=rng.uniform(0.6, 1.6),
        cloud_contrast=rng.uniform(0.0, 0.2),
        sun_yaw_deg=rng.uniform(-180.0, 180.0),
        brightness=rng.uniform(0.85, 1.1),
        noise_seed=int(rng.integers(2**31)),
    )


def _muted(rng: np.random.Generator, low: float, high: float) -> tuple[float, float, float]:
    """A greyish colour: backdrops must not pass for the solids' saturated ones."""
    grey = rng.uniform(low, high)
    red, green, blue = (float(np.clip(grey + rng.uniform(-22.0, 22.0), 30.0, 185.0)) for _ in range(3))
    return red, green, blue
