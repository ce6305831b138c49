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

POLE_CHANCE = 0.7
MOST_OF_A_SHAPE = 5
"""The highest number that the shipped language model has read."""
DECOY_PITCH_DEG = 32.0
"""Decoys stand above and below the horizon by up to this much."""

Split = Literal["train", "val", "test", "backbones"]
SPLIT_CODES: dict[str, int] = {"train": 0, "val": 1, "test": 2, "backbones": 3}
"""``backbones`` is what the shipped miniature models were trained on: none of the three splits users see."""


@dataclass(frozen=True)
class Level:
    """How hard scenes are to read. Pairs are ranges, angles are in degrees.

    Attributes:
        solids: how many.
        repeat_shape: chance that a solid has a shape of an earlier one, to be counted.
        radius_deg: of solids.
        spacing: least difference of two solids in yaw or in pitch, in sums of their radii.
        yaw_jitter_deg, pitch_jitter_deg: how far a solid may be from the centre of its sector and of its height. The
            words change 22.5 and 11 degrees from these centres.
        pole_radius_deg, pole_offset_deg: of discs, and how far they may be from the pole.
        decoys: dark things behind the solids, which no text names.
        texture_contrast, cloud_contrast: of the backdrop.
    """

    solids: tuple[int, int]
    repeat_shape: float
    radius_deg: tuple[float, float]
    spacing: float
    yaw_jitter_deg: float
    pitch_jitter_deg: float
    pole_radius_deg: tuple[float, float]
    pole_offset_deg: float
    decoys: tuple[int, int]
    texture_contrast: tuple[float, float]
    cloud_contrast: tuple[float, float]


LEVELS = {
    1: Level(
        solids=(3, 5),
        repeat_shape=0.4,
        radius_deg=(12.0, 15.0),
        spacing=1.0,
        yaw_jitter_deg=7.0,
        pitch_jitter_deg=4.0,
        pole_radius_deg=(22.0, 28.0),
        pole_offset_deg=8.0,
        decoys=(0, 0),
        texture_contrast=(0.05, 0.25),
        cloud_contrast=(0.0, 0.2),
    ),
    2: Level(
        solids=(4, 6),
        repeat_shape=0.5,
        radius_deg=(7.0, 10.0),
        spacing=1.2,
        yaw_jitter_deg=20.0,
        pitch_jitter_deg=9.0,
        pole_radius_deg=(14.0, 22.0),
        pole_offset_deg=13.0,
        decoys=(3, 6),
        texture_contrast=(0.1, 0.35),
        cloud_contrast=(0.1, 0.25),
    ),
    3: Level(
        solids=(5, 6),
        repeat_shape=0.55,
        radius_deg=(6.5, 9.0),
        spacing=1.2,
        yaw_jitter_deg=21.0,
        pitch_jitter_deg=10.0,
        pole_radius_deg=(10.0, 18.0),
        pole_offset_deg=15.0,
        decoys=(5, 8),
        texture_contrast=(0.15, 0.4),
        cloud_contrast=(0.15, 0.3),
    ),
}
"""Level 1 is what the shipped miniature backbones were trained on."""


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
class Decoy:
    """A dark thing of a solid's shape and of none of the colours. It is part of the backdrop: no text names it."""

    shape: str
    paint: tuple[float, float, float]
    yaw_deg: float
    pitch_deg: float
    radius_deg: float


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
    decoys: tuple[Decoy, ...] = ()
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
            decoys=tuple(replace(decoy, yaw_deg=wrap_deg(decoy.yaw_deg + turn_deg)) for decoy in self.decoys),
            turn_deg=self.turn_deg + turn_deg,
        )


def wrap_deg(angle: float) -> float:
    """The same angle in [-180, 180)."""
    return (angle + 180.0) % 360.0 - 180.0


def scene_at(seed: int, split: Split, index: int, level: int = 1) -> Scene:
    """Scene `index` of a split: the same arguments give the same scene, and no two splits or levels share one."""
    key = [seed, SPLIT_CODES[split], index, *([level] if level > 1 else [])]
    return draw_scene(np.random.default_rng(np.random.SeedSequence(key)), LEVELS[level])


def draw_scene(rng: np.random.Generator, level: Level) -> Scene:
    """A scene out of a random generator."""
    count = int(rng.integers(level.solids[0], level.solids[1] + 1))
    sectors = sorted(rng.choice(len(SECTORS), size=count, replace=False).tolist())
    solids: list[Solid] = []
    for sector, (colour, shape) in zip(sectors, _draw_looks(rng, count, level.repeat_shape), strict=True):
        height = str(rng.choice(list(HEIGHTS)))
        while True:
            yaw_deg = wrap_deg(sector * SECTOR_DEG + rng.uniform(-level.yaw_jitter_deg, level.yaw_jitter_deg))
            pitch_deg = HEIGHTS[height] + rng.uniform(-level.pitch_jitter_deg, level.pitch_jitter_deg)
            solid = Solid(colour, shape, sector, height, yaw_deg, pitch_deg, radius_deg=rng.uniform(*level.radius_deg))
            if all(_are_apart(solid, other, level.spacing) for other in solids):
                break
        solids.append(solid)
    discs = []
    for pole in POLES:
        if rng.random() < POLE_CHANCE:
            pitch = 90.0 - rng.uniform(0.0, level.pole_offset_deg)
            discs.append(
                Disc(
                    colour=str(rng.choice(COLOURS)),
                    pole=pole,
                    yaw_deg=rng.uniform(-180.0, 180.0),
                    pitch_deg=pitch if pole == "overhead" else -pitch,
                    radius_deg=rng.uniform(*level.pole_radius_deg),
                )
            )
    backdrop = _draw_backdrop(rng, level)
    decoys = int(rng.integers(level.decoys[0], level.decoys[1] + 1))
    return Scene(tuple(solids), tuple(discs), backdrop, tuple(_draw_decoy(rng, level) for _ in range(decoys)))


def _are_apart(one: Solid, other: Solid, spacing: float) -> bool:
    yaw, pitch = abs(wrap_deg(one.yaw_deg - other.yaw_deg)), abs(one.pitch_deg - other.pitch_deg)
    return max(yaw, pitch) > spacing * (one.radius_deg + other.radius_deg)


def _draw_looks(rng: np.random.Generator, count: int, repeat_shape: float) -> list[tuple[str, str]]:
    """(colour, shape) pairs: colours differ, so that each solid can be named; shapes repeat, to be counted."""
    colours = [COLOURS[index] for index in rng.permutation(len(COLOURS))[:count]]
    shapes: list[str] = []
    for _ in range(count):
        free = [shape for shape in SHAPES if shapes.count(shape) < MOST_OF_A_SHAPE]
        drawn = [shape for shape in shapes if shape in free]
        repeat = drawn and rng.random() < repeat_shape
        shapes.append(str(rng.choice(drawn if repeat else free)))
    return list(zip(colours, shapes, strict=True))


def _draw_decoy(rng: np.random.Generator, level: Level) -> Decoy:
    return Decoy(
        shape=str(rng.choice(SHAPES)),
        paint=_muted(rng, 35.0, 75.0, spread=12.0),
        yaw_deg=rng.uniform(-180.0, 180.0),
        pitch_deg=rng.uniform(-DECOY_PITCH_DEG, DECOY_PITCH_DEG),
        radius_deg=rng.uniform(*level.radius_deg),
    )


def _draw_backdrop(rng: np.random.Generator, level: Level) -> Backdrop:
    horizon = _muted(rng, 90.0, 165.0)
    zenith = _muted(rng, 60.0, 140.0)
    return Backdrop(
        zenith=zenith,
        horizon=horizon,
        floor=_muted(rng, 55.0, 140.0),
        texture=rng.choice(["plain", "checker", "stripes", "speckle"]).item(),
        texture_contrast=rng.uniform(*level.texture_contrast),
        texture_scale=rng.uniform(0.6, 1.6),
        cloud_contrast=rng.uniform(*level.cloud_contrast),
        sun_yaw_deg=rng.uniform(-180.0, 180.0),
        brightness=rng.uniform(0.85, 1.1),
        noise_seed=int(rng.integers(2**31)),
    )


def _muted(rng: np.random.Generator, low: float, high: float, spread: float = 22.0) -> tuple[float, float, float]:
    """A greyish colour: what no text names must not pass for the solids' saturated ones."""
    grey = rng.uniform(low, high)
    red, green, blue = (float(np.clip(grey + rng.uniform(-spread, spread), 30.0, 185.0)) for _ in range(3))
    return red, green, blue
