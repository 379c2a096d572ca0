"""What happens in a video: who is in it, where everyone goes, and which events befall them.

A scene is a pure function of (VERSION, split, index). Nothing here knows of pixels; `draw` does.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from catalogs.synthetic.paths import SIZE, Plan, walk
from catalogs.synthetic.shapes import CLASSES, PLAIN, SILHOUETTES, Colour, Double, Look, boxes, turns

VERSION = "synthetic-v1"
BURSTS = ("motion_blur", "defocus", "noise", "low_contrast")
SPEEDS = {"slow": (0.84, 0.92), "medium": (0.66, 0.77), "fast": (0.46, 0.56)}  # mean IoU of consecutive boxes

_FRAMES = (32, 40)
_BURST_START = 0.046  # chance a frame that a clean object deteriorates
_BURST_FRAMES = (2, 6)
_GAP_FRAMES = (5, 10)  # out of sight before re-entry


@dataclass(frozen=True)
class Thing:
    """Something that is drawn: an object, an occluder or a distractor.

    center: (T, 2) x, y in pixels of the frame; scale: (T,); angle: (T,) radians; shown: (T,) bool;
    burst: (T,) int8, 0 or 1 + the index into BURSTS; strength: of its bursts, in [0, 1].
    """

    look: Look
    center: Double
    scale: Double
    angle: Double
    shown: NDArray[np.bool_]
    burst: NDArray[np.int8]
    strength: float = 0.0

    def boxes(self) -> Double:
        """Tight boxes (T, 4) of the whole silhouette, also where it lies outside the frame."""
        return boxes(self.look, self.center, self.scale, self.angle)


@dataclass(frozen=True)
class Scene:
    """One video before it is drawn.

    objects: far to near; they alone are in the truth. partner: for each object the index of the one it is
    concentric with for a while, or -1. lookalike: for each object whether another of its class and colour is there.
    occluders: nearer than all objects, fixed to the background. distractors: object-like, for 1 or 2 frames.
    camera: (T, 2), how far the background has moved since frame 0, in pixels; jitter: (T,) bool.
    backdrop: the background's mean colour; objects keep apart from it, so that their silhouettes can be found.
    """

    split: str
    index: int
    speed: str
    objects: tuple[Thing, ...]
    partner: tuple[int, ...]
    lookalike: tuple[bool, ...]
    occluders: tuple[Thing, ...]
    distractors: tuple[Thing, ...]
    camera: Double
    jitter: NDArray[np.bool_]
    backdrop: Colour

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.camera)


def randomness(*names: object) -> RandomState:
    """Random numbers for these names alone. RandomState's stream is frozen for ever (NEP 19), Generator's is not."""
    seed = hashlib.sha256("/".join(map(str, (VERSION, *names))).encode()).digest()
    return RandomState(np.frombuffer(seed, "<u4"))


def make_scene(split: str, index: int) -> Scene:
    """The scene of one video. Speeds take turns over the indices, so that any first videos hold all three alike."""
    random = randomness(split, index, "scene")
    num_frames = int(random.randint(_FRAMES[0], _FRAMES[1] + 1))
    speed = tuple(SPEEDS)[index % len(SPEEDS)]
    backdrop = colour(random, (0.05, 0.4), (0.3, 0.7))
    drift, shake = _camera(random, num_frames)
    plans = _cast(random, num_frames, backdrop)
    centers = walk(plans, random.uniform(*SPEEDS[speed]), shake)
    camera = drift + shake
    objects = tuple(
        Thing(
            look=plan.look,
            center=center,
            scale=plan.scale,
            angle=plan.angle,
            shown=np.ones(num_frames, bool),
            burst=_bursts(random, num_frames),
            strength=random.uniform(0.6, 1.0),
        )
        for plan, center in zip(plans, centers, strict=True)
    )
    occluders = tuple(_occluder(random, camera) for _ in range(int(random.random_sample() < 0.35)))
    distractors = tuple(_distractor(random, num_frames, backdrop) for _ in range(random.randint(0, 5)))
    return Scene(
        split=split,
        index=index,
        speed=speed,
        objects=objects,
        partner=tuple(plan.partner for plan in plans),
        lookalike=tuple(plan.lookalike for plan in plans),
        occluders=occluders,
        distractors=distractors,
        camera=camera,
        jitter=np.any(shake != 0, axis=1),
        backdrop=backdrop,
    )


def colour(
    random: RandomState, saturation: tuple[float, float], value: tuple[float, float], apart_from: Colour | None = None
) -> Colour:
    """A random RGB in [0, 255]; where `apart_from` is given, at least 100 grey levels in all from it."""
    for _ in range(30):
        rgb = colorsys.hsv_to_rgb(random.random_sample(), random.uniform(*saturation), random.uniform(*value))
        red, green, blue = (round(255 * channel, 2) for channel in rgb)
        if apart_from is None or sum(abs(c - d) for c, d in zip((red, green, blue), apart_from, strict=True)) > 100:
            break
    return red, green, blue


def _look(random: RandomState, label: int, backdrop: Colour, diameter: float, aspect: float | None = None) -> Look:
    """A random look of a class; `aspect` is width over height, else most often 1."""
    if aspect is None:
        aspect = (1.0, 1.0, 1.0, 1.3, 0.75, 1.7, 0.6)[random.randint(7)]
    stretch = math.sqrt(aspect)
    ground = colour(random, (0.35, 0.95), (0.4, 1.0), backdrop)
    angle = np.array([random.uniform(0, math.pi)])
    cosine, sine = turns(angle)
    return Look(
        label=label,
        silhouette=SILHOUETTES[random.randint(len(SILHOUETTES))],
        half=(diameter * stretch / 2, diameter / stretch / 2),
        ground=ground,
        ink=_ink(random, ground),
        period=max(9.0, diameter * random.uniform(0.34, 0.5)),
        tilt=(float(cosine[0]), float(sine[0])),
        phase=(random.random_sample(), random.random_sample()),
        rim=random.uniform(0.15, 0.6),
    )


def _ink(random: RandomState, ground: Colour) -> Colour:
    """A colour for the pattern: 70 to 150 grey levels lighter or darker than the ground, of another hue."""
    contrast = random.uniform(70, 150)
    luminance = _luminance(ground)
    wanted = luminance - contrast if luminance > 127 else luminance + contrast
    red, green, blue = colour(random, (0.1, 0.9), (0.2, 1.0))
    shift = wanted - _luminance((red, green, blue))
    return tuple(min(255.0, max(0.0, channel + shift)) for channel in (red, green, blue))  # type: ignore[return-value]


def _luminance(rgb: Colour) -> float:
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def _plan(random: RandomState, look: Look, num_frames: int) -> Plan:
    """A way of its own through the middle of the frame."""
    height, width = SIZE
    time = np.arange(num_frames, dtype=np.float64)
    breath = np.abs((time / random.uniform(30, 60) + random.random_sample()) % 1 - 0.5) * 4 - 1
    spin = random.uniform(-0.02, 0.02) * (random.random_sample() < 0.6)
    return Plan(
        look=look,
        scale=1 + random.uniform(0, 0.12) * breath,
        angle=random.uniform(-0.5, 0.5) + spin * time,
        heading=_heading(random.uniform(0, 2 * math.pi)),
        pace=random.uniform(0.85, 1.15),
        when=float(random.randint(8, num_frames - 8)),
        where=(random.uniform(0.3, 0.7) * width, random.uniform(0.3, 0.7) * height),
        sway=(random.uniform(0.1, 0.4), random.uniform(16, 30)),
    )


def _heading(angle: float) -> tuple[float, float]:
    cosine, sine = turns(np.array([angle]))
    return float(cosine[0]), float(sine[0])


def _cast(random: RandomState, num_frames: int, backdrop: Colour) -> list[Plan]:
    """The objects of a video: a pair with a story in most, and one to three on their own, one of whom may leave."""
    labels = [int(label) for label in random.permutation(len(CLASSES))]
    diameters = [random.uniform(25, 41) for _ in range(4)]
    plans: list[Plan] = []
    story = random.random_sample()
    if story < 0.36:
        plans += _lookalikes(random, labels.pop(), diameters.pop(), num_frames, backdrop)
    elif story < 0.6:
        plans += _concentric(random, (labels.pop(), labels.pop()), diameters.pop(), num_frames, backdrop)
    others = 1 + int(random.random_sample() < 0.35) + int(not plans)
    leaves = random.random_sample() < 0.45
    for number in range(others):
        diameter = random.uniform(23, 29) if number == 0 and leaves else diameters.pop()
        plan = _plan(random, _look(random, labels.pop(), backdrop, diameter), num_frames)
        if number == 0 and leaves:
            plan = _leaving(random, plan, num_frames)
        else:
            plan = replace(plan, where=_clear_of(random, plans))
        plans.insert(0 if random.random_sample() < 0.5 else len(plans), plan)
    leader = next((place for place, plan in enumerate(plans) if plan.partner >= 0), 0) - 1
    return [replace(plan, partner=leader) if plan.partner >= 0 else plan for plan in plans]


def _clear_of(random: RandomState, plans: list[Plan]) -> tuple[float, float]:
    """The best of eight places, that which is farthest from where the others meet."""
    height, width = SIZE
    places = [(random.uniform(0.15, 0.85) * width, random.uniform(0.15, 0.85) * height) for _ in range(8)]
    others = [plan.where for plan in plans]
    return max(places, key=lambda place: min(((place[0] - x) ** 2 + (place[1] - y) ** 2 for x, y in others), default=0))


def _lookalikes(
    random: RandomState, label: int, diameter: float, num_frames: int, backdrop: Colour
) -> tuple[Plan, Plan]:
    """Two of one class and nearly one colour whose ways cross."""
    look = _look(random, label, backdrop, diameter)
    near = [random.uniform(-14, 14) for _ in range(3)]
    red, green, blue = (min(255.0, max(0.0, c + d)) for c, d in zip(look.ground, near, strict=True))
    twin = replace(
        look,
        silhouette=SILHOUETTES[random.randint(len(SILHOUETTES))],
        ground=(red, green, blue),
        phase=(random.random_sample(), 0.5),
    )
    first = _plan(random, look, num_frames)
    angle = random.uniform(0, 2 * math.pi)
    other = _plan(random, twin, num_frames)
    beside = random.uniform(0.3, 0.65) * diameter
    heading = _heading(angle)
    return (
        replace(first, heading=heading, lookalike=True),
        replace(
            other,
            heading=_heading(angle + math.pi + random.uniform(-0.8, 0.8)),
            when=first.when,
            where=(first.where[0] - heading[1] * beside, first.where[1] + heading[0] * beside),
            lookalike=True,
        ),
    )


def _concentric(
    random: RandomState, labels: tuple[int, int], diameter: float, num_frames: int, backdrop: Colour
) -> tuple[Plan, Plan]:
    """A wide one and, before it, a tall one with the same centre for a while."""
    wide = _plan(random, _look(random, labels[0], backdrop, 1.1 * diameter, random.uniform(2.2, 2.8)), num_frames)
    tall = _plan(random, _look(random, labels[1], backdrop, 0.95 * diameter, random.uniform(0.4, 0.5)), num_frames)
    still = random.uniform(-0.12, 0.12) + np.zeros(num_frames)
    hold = random.uniform(4, 10)
    return replace(wide, angle=still), replace(tall, angle=still, when=wide.when, partner=0, hold=hold)


def _leaving(random: RandomState, plan: Plan, num_frames: int) -> Plan:
    """The same object, but it leaves at the left or right and comes back."""
    height, width = SIZE
    side = 1.0 if random.random_sample() < 0.5 else -1.0
    angle = plan.angle[:1]
    reach = float(np.abs(boxes(plan.look, np.zeros((1, 2)), np.ones(1), angle))[0, 0 if side > 0 else 2])
    sine = random.uniform(-0.35, 0.35)
    return replace(
        plan,
        heading=(side, round(sine, 3)),
        angle=angle.repeat(num_frames),
        pace=random.uniform(1.1, 1.4),
        scale=np.ones(num_frames),
        sway=(0.0, 20.0),
        when=float(random.randint(5, num_frames - _GAP_FRAMES[1] - 6)),
        where=(width + reach if side > 0 else -reach, random.uniform(0.3, 0.7) * height),
        gap=random.uniform(*_GAP_FRAMES),
    )


def _camera(random: RandomState, num_frames: int) -> tuple[Double, Double]:
    """Slow drift (T, 2) of the background in pixels, and the shake (T, 2) that bursts of jitter add to everything."""
    time = np.arange(num_frames)[:, None]
    drift = time * np.array([random.uniform(-0.5, 0.5), random.uniform(-0.4, 0.4)])
    shake = np.zeros((num_frames, 2))
    if random.random_sample() < 0.4:
        start = random.randint(0, num_frames - 8)
        length = random.randint(4, 9)
        shake[start : start + length] = random.randint(-3, 4, (length, 2))
    return np.round(drift * 64) / 64, shake


def _bursts(random: RandomState, num_frames: int) -> NDArray[np.int8]:
    """A two-state Markov chain: clean, or a burst of one kind; (T,) of 0 or 1 + the index into BURSTS."""
    burst = np.zeros(num_frames, np.int8)
    frame = 0
    while frame < num_frames:
        if random.random_sample() < _BURST_START:
            length = random.randint(_BURST_FRAMES[0], _BURST_FRAMES[1] + 1)
            burst[frame : frame + length] = 1 + random.randint(len(BURSTS))
            frame += length
        frame += 1
    return burst


def _occluder(random: RandomState, camera: Double) -> Thing:
    """A post or a beam right across the frame, fixed to the background."""
    height, width = SIZE
    look = Look(
        label=PLAIN,
        silhouette="rectangle",
        half=(random.uniform(7, 13), 150.0),
        ground=colour(random, (0.0, 0.35), (0.15, 0.85)),
        rim=0.5,
    )
    angle = random.uniform(-0.4, 0.4) + (math.pi / 2 if random.random_sample() < 0.3 else 0.0)
    middle = np.array([random.uniform(0.25, 0.75) * width, random.uniform(0.3, 0.7) * height])
    return _steady(look, np.round((middle + camera) * 64) / 64, angle, np.ones(len(camera), bool))


def _distractor(random: RandomState, num_frames: int, backdrop: Colour) -> Thing:
    """It looks like an object, pattern and all, and is gone after a frame or two."""
    height, width = SIZE
    look = _look(random, random.randint(len(CLASSES)), backdrop, random.uniform(20, 34))
    shown = np.zeros(num_frames, bool)
    start = random.randint(num_frames - 1)
    shown[start : start + random.randint(1, 3)] = True
    middle = np.array([random.uniform(0.1, 0.9) * width, random.uniform(0.1, 0.9) * height])
    return _steady(look, np.broadcast_to(middle, (num_frames, 2)), random.uniform(0, math.pi), shown)


def _steady(look: Look, center: Double, angle: float, shown: NDArray[np.bool_]) -> Thing:
    """A thing that neither turns nor grows nor deteriorates."""
    still = np.zeros(len(center))
    return Thing(look, center, still + 1, still + angle, shown, still.astype(np.int8))
