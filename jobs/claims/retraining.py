"""All networks trained again, each by its named training with each seed, in waves: what others begin with is first.

    OUT/training/<weights>/             a training, which goes on from its checkpoint; <weights> names the seed too
    OUT/weights/<weights>.safetensors   what it gave, and its card (.md)

What lies in OUT/weights is not trained again. Who takes a file away there must take away what begins with it too.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from jobs import train_folder
from jobs.claims.system import WeightsFile
from jobs.claims.trained import SUFFIX, Trained
from jobs.claims.working import done
from jobs.train import train
from jobs.train_card import portable
from jobs.train_judge import BEST
from models.parts.weights import read_weights
from pipeline.config import plain
from pipeline.engine import Engine
from pipeline.tables import Store, differences
from pipeline.training.work import MAY_DIFFER

WEIGHTS = "weights"  # below OUT


def file_in(out: str) -> WeightsFile:
    """Where weights of a name are that were trained again."""
    return lambda name: Store(out).url_of(WEIGHTS, f"{name}{SUFFIX}")


def retrain(wanted: Sequence[Trained], out: str, engine: Engine) -> dict[str, str]:
    """Trains what OUT/weights does not hold yet; gives the errors by name of what failed, or began with what did.

    wanted: what is begun with first. Raises ValueError where OUT/weights holds weights of another training.
    """
    for each in wanted:
        check(each, out)
    errors: dict[str, str] = {}
    rest = [each for each in wanted if not is_trained(each, out)]
    while rest:
        waiting = set(rest)
        wave = {each.name: each for each in rest if each.after not in waiting}
        _, failed = done("train", wave, partial(train_one, out), engine)
        errors |= failed
        rest = [each for each in rest if each.name not in wave]
        for each in list(rest):
            if each.after is not None and each.after.name in errors:
                errors[each.name] = f"it begins with {each.after.name}, whose training failed"
                rest.remove(each)
    return errors


def is_trained(each: Trained, out: str) -> bool:
    """Whether these weights are there, with their card, which is written last."""
    return all(Store(out).exists(WEIGHTS, f"{each.name}{ending}") for ending in (SUFFIX, ".md"))


def check(each: Trained, out: str) -> None:
    """Raises ValueError where weights are there that were trained otherwise than they would be now."""
    if is_trained(each, out):
        path = file_in(out)(each.name)
        texts = read_weights(path).metadata["training"], json.dumps(portable(plain(each.training(file_in(out)))))
        # What they begin with is the same by the name of shipped weights and by that of their file.
        there, here = (json.loads(text.replace(f'{SUFFIX}"', '"')) for text in texts)
        there, here = ({name: of[name] for name in of.keys() - {*MAY_DIFFER}} for of in (there, here))
        others = list(differences(there, here))
        if others:
            raise ValueError(
                f"{path} is of another training ({'; '.join(others[:3])}); take it away or give another --out"
            )


def train_one(out: str, each: Trained) -> None:
    """Trains, or goes on with a training, in this process; its weights and their card lie in OUT/weights then."""
    folder, export = f"{out}/training/{each.name}", file_in(out)(each.name)
    about = train_folder.known(folder)
    if about is None or about["state"] != "finished":
        with _called(each.words()):
            train(
                None, out=folder, recipe=each.given()[0], settings=each.settings(file_in(out)), seed=each.seed,
                local=True, half=True, export=export,
            )  # fmt: skip
        return
    # It was stopped after its end and before its weights were where they belong.
    store = Store(folder)
    Store(out).write(store.read(BEST), WEIGHTS, f"{each.name}{SUFFIX}")
    text = store.read(BEST.replace(SUFFIX, ".md")).decode().replace("# best\n", f"# {each.name}\n", 1)
    Store(out).write(text.encode(), WEIGHTS, f"{each.name}.md")


@contextlib.contextmanager
def _called(words: Sequence[str]) -> Iterator[None]:
    """As if this process were that of `trackloom train` with these words, which weights and cards tell as theirs."""
    before = sys.argv
    sys.argv = ["trackloom", "train", *words]
    try:
        yield
    finally:
        sys.argv = before
