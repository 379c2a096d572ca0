"""Pixels: a scene's frames, what of each object is to be seen in them, and the exact optical flow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from catalogs.synthetic.paths import SIZE
from catalogs.synthetic.scene import BURSTS, Scene, Thing, colour, randomness
from catalogs.synthetic.shapes import PLAIN, SILHOUETTES, Float, Look, distance, ink, turns

_MARGIN = 32  # pixels of background beyond each border, for the camera to move over
_MEAN_INK = 0.45  # what a pattern looks like on average when it cannot be read


@dataclass(frozen=True)
class Picture:
    """One drawn frame.

    frame: uint8 (H, W, 3) RGB; inside: (N,) share of each object's silhouette that lies in the frame;
    visible: (N,) share that is also covered by nothing; top: int16 (H, W), index of the object seen at each pixel,
    -1 where that is background or an occluder.
    """

    frame: NDArray[np.uint8]
    inside: Float
    visible: Float
    top: NDArray[np.int16]


@dataclass(frozen=True)
class _Stamp:
    """A thing in one frame: where it lies, and over its rectangle how much it covers, (h, w), and its RGB."""

    rows: slice
    columns: slice
    solid: Float  # the true silhouette
    cover: Float  # what is painted: softer where the thing deteriorates
    colour: Float  # (h, w, 3)


def pictures(scene: Scene, clean: bool = False) -> Iterator[Picture]:
    """Draws the frames in order; `clean` without deterioration, distractors, changing light and noise.

    Brightness is constant along the motion in a clean video, as `flow` tests need it.
    """
    random = randomness(scene.split, scene.index, "pixels")
    background = _background(random, scene)
    light = _light(random)
    grain = _grain(random)
    for time in range(scene.num_frames):
        canvas = _seen(background, scene.camera[time])
        for thing in () if clean else scene.distractors:
            _paint(canvas, _stamp(thing, time, None))
        stamps = [_stamp(thing, time, None if clean else grain) for thing in scene.objects]
        posts = [_stamp(thing, time, None) for thing in scene.occluders]
        for stamp in (*stamps, *posts):
            _paint(canvas, stamp)
        if not clean:
            x, y = random.randint(0, 64, 2)
            canvas = canvas * light + 2.5 * grain[y : y + SIZE[0], x : x + SIZE[1], None]
        frame = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
        yield Picture(frame, *_coverage(scene, time, stamps, posts))


def flow(scene: Scene) -> Iterator[Float]:
    """Forward flow (H, W, 2), x then y in pixels, of each frame to the next: exact, as it is what drew the frames.

    A pixel belongs to what is seen in front at it; distractors, which go nowhere, count as the background.
    """
    height, width = SIZE
    y, x = np.mgrid[:height, :width].astype(np.float64) + 0.5
    for time, picture in enumerate(pictures(scene, clean=True)):
        if time + 1 == scene.num_frames:
            return
        field = np.empty((height, width, 2), np.float32)
        field[:] = scene.camera[time + 1] - scene.camera[time]
        for number, thing in enumerate(scene.objects):
            where = picture.top == number
            # Into the thing's own coordinates now, and out of them a frame later.
            u, v = _own(thing, time, x[where], y[where])
            cosine, sine = turns(thing.angle[time + 1 : time + 2])
            scale = thing.scale[time + 1]
            field[where, 0] = thing.center[time + 1, 0] + scale * (cosine * u - sine * v) - x[where]
            field[where, 1] = thing.center[time + 1, 1] + scale * (sine * u + cosine * v) - y[where]
        yield field


def _own(thing: Thing, time: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the frame in the thing's own coordinates."""
    cosine, sine = (float(value[0]) for value in turns(thing.angle[time : time + 1]))
    right, down = x - float(thing.center[time, 0]), y - float(thing.center[time, 1])
    scale = float(thing.scale[time])
    return (cosine * right + sine * down) / scale, (cosine * down - sine * right) / scale


def _stamp(thing: Thing, time: int, grain: Float | None) -> _Stamp | None:
    """The thing as it is to be painted, or None where nothing of it is in the frame; no grain, no deterioration."""
    if not thing.shown[time]:
        return None
    height, width = SIZE
    look, scale = thing.look, float(thing.scale[time])
    kind = BURSTS[thing.burst[time] - 1] if grain is not None and thing.burst[time] else None
    smear = _smear(thing, time) if kind == "motion_blur" else (0.0, 0.0)
    soft = 0.16 * look.diameter if kind == "defocus" else 1.0
    box = thing.boxes()[time]
    x1, y1 = (int(box[axis] - soft - abs(smear[axis])) - 1 for axis in (0, 1))
    x2, y2 = (int(box[axis + 2] + soft + abs(smear[axis])) + 2 for axis in (0, 1))
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if x1 >= x2 or y1 >= y2:
        return None
    x = np.arange(x1, x2, dtype=np.float32)[None] + 0.5
    y = np.arange(y1, y2, dtype=np.float32)[:, None] + 0.5
    u, v = _own(thing, time, x, y)
    outline = distance(look, u, v) * scale
    solid = np.clip(0.5 - outline, 0, 1)
    cover = solid
    if kind == "defocus":
        cover = np.clip(0.5 - outline / soft, 0, 1)
    elif kind == "motion_blur":
        shifts = [((x - part * smear[0]), (y - part * smear[1])) for part in (-1.0, -0.5, 0.5, 1.0)]
        exposures = [np.clip(0.5 - distance(look, *_own(thing, time, *xy)) * scale, 0, 1) for xy in shifts]
        cover = (solid + exposures[0] + exposures[1] + exposures[2] + exposures[3]) / 5
    pattern = ink(look, u, v) if look.label != PLAIN else np.zeros_like(u)
    if kind:
        pattern = _MEAN_INK + (1 - thing.strength) * 0.15 * (pattern - _MEAN_INK)
    rim = 1 - look.rim * np.clip((outline + 2.5) / 2, 0, 1)
    ground = np.array(look.ground, np.float32)
    paint = (ground + pattern[..., None] * (np.array(look.ink, np.float32) - ground)) * rim[..., None]
    if kind == "noise":
        assert grain is not None
        speckle = grain[7 * time % 64 :, 13 * time % 64 :]
        paint = paint + (24 * thing.strength) * speckle[y1:y2, x1:x2, None]
    elif kind == "low_contrast":
        cover = cover * (1 - 0.5 * thing.strength)
    return _Stamp(slice(y1, y2), slice(x1, x2), solid, cover, paint)


def _smear(thing: Thing, time: int) -> tuple[float, float]:
    """Half the way that motion blur spreads over, along the velocity, 0.15 to 0.3 diameters long."""
    velocity = thing.center[min(time + 1, len(thing.center) - 1)] - thing.center[max(time - 1, 0)]
    x, y = float(velocity[0]), float(velocity[1])
    length = max((x * x + y * y) ** 0.5, 1e-3)
    reach = min(max(length / 2, 0.15 * thing.look.diameter), 0.3 * thing.look.diameter)
    return reach * x / length, reach * y / length


def _paint(canvas: Float, stamp: _Stamp | None) -> None:
    if stamp is not None:
        under = canvas[stamp.rows, stamp.columns]
        under += stamp.cover[..., None] * (stamp.colour - under)


def _coverage(
    scene: Scene, time: int, stamps: list[_Stamp | None], posts: list[_Stamp | None]
) -> tuple[Float, Float, NDArray[np.int16]]:
    """`inside`, `visible` and `top` of a Picture. Areas are counted in 1/256 pixel: whole numbers add up alike."""
    free = np.full(SIZE, 256, np.int64)
    top = np.full(SIZE, -1, np.int16)
    taken = np.zeros(SIZE, bool)
    for post in posts:
        if post is not None:
            free[post.rows, post.columns] -= np.round(free[post.rows, post.columns] * post.solid).astype(np.int64)
            taken[post.rows, post.columns] |= post.solid >= 0.5
    inside, visible = np.zeros((2, len(stamps)), np.float32)
    for number in reversed(range(len(stamps))):  # near to far
        stamp, thing = stamps[number], scene.objects[number]
        if stamp is None:
            continue
        place = stamp.rows, stamp.columns
        whole = 256 * thing.look.area * float(thing.scale[time]) ** 2
        seen = np.round(free[place] * stamp.solid).astype(np.int64)
        inside[number] = min(1.0, int(np.round(256 * stamp.solid).astype(np.int64).sum()) / whole)
        visible[number] = min(1.0, int(seen.sum()) / whole)
        free[place] -= seen
        mine = (stamp.solid >= 0.5) & ~taken[place]
        top[place][mine] = number
        taken[place] |= mine
    return inside, visible, top


def _background(random: RandomState, scene: Scene) -> Float:
    """A textured ground with clutter, _MARGIN larger than the frame on each side."""
    height, width = SIZE[0] + 2 * _MARGIN, SIZE[1] + 2 * _MARGIN
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = np.array(scene.backdrop, np.float32)
    for cell, strength in ((64, 34), (22, 22), (9, 12), (3, 7)):
        canvas += strength * _value_noise(random, (height, width), cell, 3 if cell > 9 else 1)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    if random.random_sample() < 0.35:  # planks, tiles: what the patterns of the classes are easily taken for
        cosine, sine = turns(np.array([random.uniform(0, 3.2)]))
        tiling = Look(
            label=(0, 1, 4, 5)[random.randint(4)],
            silhouette="rectangle",
            half=(width, height),
            ground=scene.backdrop,
            period=random.uniform(9, 26),
            tilt=(float(cosine[0]), float(sine[0])),
        )
        canvas += random.uniform(6, 16) * (ink(tiling, x - width / 2, y - height / 2) - 0.5)[..., None]
    for _ in range(random.randint(3, 9)):  # faint plain shapes
        half = (random.uniform(5, 18), random.uniform(5, 18))
        clutter = Look(PLAIN, SILHOUETTES[random.randint(len(SILHOUETTES))], half, colour(random, (0, 0.6), (0.1, 0.9)))
        u, v = x - random.uniform(0, width), y - random.uniform(0, height)
        cover = random.uniform(0.15, 0.4) * np.clip(0.5 - distance(clutter, u, v) / 2, 0, 1)
        canvas += cover[..., None] * (np.array(clutter.ground, np.float32) - canvas)
    return canvas


def _value_noise(random: RandomState, size: tuple[int, int], cell: int, channels: int) -> Float:
    """Smooth noise (H, W, channels) in [-1, 1] that changes over `cell` pixels."""
    rows, columns = size[0] // cell + 2, size[1] // cell + 2
    knots = random.uniform(-1, 1, (rows, columns, channels)).astype(np.float32)
    vertical = _smooth(np.arange(size[0], dtype=np.float32) / cell)
    horizontal = _smooth(np.arange(size[1], dtype=np.float32) / cell)
    row, down = vertical[0], vertical[1][:, None, None]
    column, right = horizontal[0], horizontal[1][None, :, None]
    lines = knots[row] * (1 - down) + knots[row + 1] * down
    return lines[:, column] * (1 - right) + lines[:, column + 1] * right


def _smooth(x: Float) -> tuple[NDArray[np.intp], Float]:
    """The cell that each place is in, and its way through it, eased at both ends."""
    cell = np.floor(x)
    part = x - cell
    return cell.astype(np.intp), part * part * (3 - 2 * part)


def _light(random: RandomState) -> Float:
    """A steady gradient (H, W, 1) by which light falls off over the frame."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    return (1 + random.uniform(-0.3, 0.3) * (x / SIZE[1] - 0.5) + random.uniform(-0.3, 0.3) * (y / SIZE[0] - 0.5))[
        ..., None
    ].astype(np.float32)


def _grain(random: RandomState) -> Float:
    """Noise (H + 64, W + 64) in [-2, 2], triangular: frames cut their own pieces out of it."""
    count = (SIZE[0] + 64) * (SIZE[1] + 64)
    pairs = np.frombuffer(random.bytes(2 * count), np.uint8).reshape(2, SIZE[0] + 64, SIZE[1] + 64)
    return (pairs[0].astype(np.float32) + pairs[1].astype(np.float32) - 255) / 127.5


def _seen(background: Float, camera: np.ndarray) -> Float:
    """What of the background a frame shows once it has moved by `camera` (2,) pixels; bilinear."""
    x, y = (_MARGIN - float(value) for value in camera)
    column, row = int(x), int(y)
    right, down = x - column, y - row
    height, width = SIZE
    piece = background[row : row + height + 1, column : column + width + 1]
    lines = piece[:-1] * (1 - down) + piece[1:] * down
    return lines[:, :-1] * (1 - right) + lines[:, 1:] * right
