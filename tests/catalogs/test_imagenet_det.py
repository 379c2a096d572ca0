"""ImageNet DET: a tiny tree made on the spot, from its folders to the truth of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from catalogs import imagenet_det
from catalogs.imagenet_det import Settings, choose
from catalogs.parts.imagenet import WORDNET_IDS
from pipeline.records import ClipRef, Resize
from pipeline.schemas import TRUTH
from pipeline.video import decode

DOG, FOX, PERSON = "n02084071", "n02118333", "n00007846"  # VID lacks the last
DOGS = [f"ILSVRC2013_train/{DOG}/{DOG}_{number}" for number in range(4)]
BOTH = "ILSVRC2014_train_0000/ILSVRC2014_train_00000007"
VAL = "ILSVRC2012_val_00000001"


def annotate(path: Path, objects: Iterable[tuple[str, tuple[int, int, int, int]]]) -> None:
    """An annotation as the dataset's are."""
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><xmax>{x2}</xmax><ymin>{y1}</ymin><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><size><width>40</width><height>30</height></size>{things}</annotation>")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four dogs, a fox with a dog and a person, a person; of val a dog and a picture of nothing. No lists."""
    root = tmp_path / "ILSVRC2015"
    held = {f"train/{name}": [(DOG, (1, 2, 10, 20))] for name in DOGS} | {
        f"train/{BOTH}": [(FOX, (0, 0, 9, 9)), (PERSON, (0, 0, 39, 29)), (DOG, (20, 5, 29, 14))],
        f"train/ILSVRC2013_train/{PERSON}/{PERSON}_1": [(PERSON, (0, 0, 5, 5))],
        f"val/{VAL}": [(DOG, (0, 0, 5, 5))],
        "val/ILSVRC2012_val_00000002": [],
    }
    for name, objects in held.items():
        image = root / "Data/DET" / f"{name}.JPEG"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 40, 3), 200, np.uint8)).save(image, "JPEG")
        annotate(root / "Annotations/DET" / f"{name}.xml", objects)
    return root


def write_lists(root: Path) -> None:
    """Lists of the 30 classes and of another one, in any order; each class but two has one picture that is nowhere."""
    folder = root / "ImageSets/DET"
    folder.mkdir(parents=True)
    positives = {each: [f"ILSVRC2013_train/{each}/{each}_9"] for each in WORDNET_IDS} | {
        DOG: [*DOGS, BOTH],
        FOX: [BOTH, f"ILSVRC2013_train/{FOX}/{FOX}_1"],
        PERSON: [f"ILSVRC2013_train/{PERSON}/{PERSON}_1", BOTH],
    }
    for number, (wordnet_id, names) in enumerate(sorted(positives.items()), 1):
        lines = [f"{name} 1" for name in names] + [f"ILSVRC2013_train/{DOG}/{DOG}_0 -1"] * (wordnet_id != DOG)
        (folder / f"train_{number}.txt").write_text("\n".join([*lines, "ILSVRC2013_train_extra0/x 0", ""]))
    (folder / "train.txt").write_text("not a list of a class 1\n")


def names(dataset: Path, settings: Settings) -> list[str]:
    return [video.video_id for video in imagenet_det.videos(str(dataset), settings)]


def test_images_of_the_classes_are_stills(dataset: Path) -> None:
    found = imagenet_det.videos(str(dataset), Settings())
    assert [video.video_id for video in found] == [*DOGS, BOTH]
    dog = found[0]
    assert (dog.kind, dog.catalog, dog.uri) == ("image", "imagenet_det", f"{dataset}/Data/DET/train/{DOGS[0]}.JPEG")
    (clip,) = decode([ClipRef(dog)], Resize(), 64)
    assert (clip.error, clip.frames.shape) == (None, (1, 3, 30, 40))
    assert names(dataset, Settings(split="val")) == [VAL]


def test_truth_has_the_boxes_of_the_classes_alone(dataset: Path) -> None:
    table = imagenet_det.truth(imagenet_det.videos(str(dataset), Settings())[-1])
    assert table.schema == TRUTH
    columns = ("video_id", "frame_index", "track_id", "class_name", "x1", "y1", "x2", "y2", "ignore")
    assert [tuple(row.values()) for row in table.select(columns).to_pylist()] == [
        (BOTH, 0, 1, "fox", 0, 0, 10, 10, False),  # the last pixel is one of it
        (BOTH, 0, 2, "dog", 20, 5, 30, 15, False),
    ]
    assert [imagenet_det.CLASSES[label] for label in table["class_id"].to_pylist()] == ["fox", "dog"]


def test_lists_spare_the_annotations(dataset: Path) -> None:
    """With them no annotation is read before it is needed, and what they list must be there."""
    write_lists(dataset)
    shown = imagenet_det.by_lists(fsspec.filesystem("file"), str(dataset / "ImageSets/DET"))
    assert shown is not None
    assert {name: set(classes) for name, classes in shown.items() if name in (*DOGS, BOTH)} == {
        **{dog: {DOG} for dog in DOGS},
        BOTH: {DOG, FOX},
    }
    nowhere = [name for name in shown if name not in (*DOGS, BOTH)]
    with pytest.raises(FileNotFoundError, match=r"Data/DET/train lacks 29 of the 34 images that are wanted, the first"):
        names(dataset, Settings())
    for name in nowhere:
        for part, ending in (("Data", "JPEG"), ("Annotations", "xml")):
            path = dataset / part / "DET/train" / f"{name}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("not read")
    found = imagenet_det.videos(str(dataset), Settings())
    assert [video.video_id for video in found] == sorted(shown)
    with pytest.raises(ValueError, match=r"n\d+_9\.xml is not whole XML"):
        imagenet_det.truth(next(video for video in found if video.video_id.endswith("_9")))


@pytest.mark.parametrize("broken", ["one is missing", "two of one class", "no lists"])
def test_lists_that_do_not_say_their_class_are_not_taken(dataset: Path, broken: str) -> None:
    write_lists(dataset)
    folder = dataset / "ImageSets/DET"
    if broken == "one is missing":
        next(path for path in folder.glob("train_*") if DOGS[1] in path.read_text()).unlink()
    elif broken == "two of one class":
        (folder / "train_99.txt").write_text(f"{DOGS[0]} 1\n")
    else:
        for path in folder.iterdir():
            path.unlink()
    assert imagenet_det.by_lists(fsspec.filesystem("file"), str(folder)) is None
    assert names(dataset, Settings()) == [*DOGS, BOTH]


def test_at_most_so_many_a_class(dataset: Path) -> None:
    assert names(dataset, Settings(per_class=None)) == [*DOGS, BOTH]
    assert names(dataset, Settings(per_class=1)) == [BOTH]  # the only fox, and a dog
    two = names(dataset, Settings(per_class=2))
    assert len(two) == 2
    assert BOTH in two
    assert names(dataset, Settings(per_class=2)) == two
    drawn = {tuple(names(dataset, Settings(per_class=2, seed=seed))) for seed in range(20)}
    assert {dog for chosen in drawn for dog in chosen} == {*DOGS, BOTH}


@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.sets(st.sampled_from("xyz"), min_size=1), max_size=12),
    st.integers(1, 4),
    st.integers(0, 3),
    st.randoms(),
)
def test_choice_is_full_fair_and_the_same_in_any_order(shown, per_class, seed, random) -> None:  # type: ignore[no-untyped-def]
    chosen = choose(shown, per_class, seed)
    counts = Counter(each for name in chosen for each in shown[name])
    assert max(counts.values(), default=0) <= per_class
    for name in shown.keys() - set(chosen):  # none could be added
        assert any(counts[each] == per_class for each in shown[name])
    order = list(shown)
    random.shuffle(order)
    assert choose({name: shown[name] for name in order}, per_class, seed) == chosen


def test_identity_changes_with_an_annotation(dataset: Path) -> None:
    before = imagenet_det.videos(str(dataset), Settings())
    annotate(dataset / "Annotations/DET/train" / f"{BOTH}.xml", [(FOX, (0, 0, 1, 1))])
    after = imagenet_det.videos(str(dataset), Settings())
    changed = [one.video_id for one, other in zip(before, after, strict=True) if one.identity != other.identity]
    assert changed == [BOTH]


def test_what_is_wrong_is_said(dataset: Path, tmp_path: Path) -> None:
    def refused(message: str, source: Path | None = dataset, settings: Settings | None = None) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            imagenet_det.videos(str(source) if source else None, settings or Settings())

    with pytest.raises(ValueError, match="split is 'test'; it must be one of: train, val"):
        Settings(split="test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="per_class is 0; it must be at least 1, or none"):
        Settings(per_class=0)
    refused("needs a folder", source=None)
    refused("nowhere is not a folder", source=tmp_path / "nowhere")
    refused("is no ImageNet DET; there is no .*Data/DET/train, .*Annotations/DET/train", source=dataset / "Data")
    damaged = dataset / "Annotations/DET/val" / f"{VAL}.xml"
    whole = damaged.read_text()
    damaged.write_text(whole[:90])
    refused(rf"{VAL}\.xml is not whole XML", settings=Settings(split="val"))
    damaged.write_text(whole.replace("<xmin>0", "<xmin>-3"))
    (video,) = imagenet_det.videos(str(dataset), Settings(split="val"))
    with pytest.raises(ValueError, match=rf"{VAL}\.xml: bndbox/xmin is '-3'; it must be a whole number from 0"):
        imagenet_det.truth(video)
    annotate(damaged, [(PERSON, (0, 0, 5, 5))])
    refused("Annotations/DET/val has no image of ImageNet VID's 30 classes", settings=Settings(split="val"))
    (dataset / "Data/DET/train" / f"{DOGS[2]}.JPEG").unlink()
    refused(f"Data/DET/train lacks 1 of the 5 images that are wanted, the first {DOGS[2]}; the dataset must be whole")
