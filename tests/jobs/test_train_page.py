"""What a training shows: its line, its page and charts, its cards."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest

from jobs.report_charts import Band, Curve, lines
from jobs.train_card import Made, card, portable
from jobs.train_folder import Folder, columns_of
from jobs.train_line import Follow, duration, text
from jobs.train_page import render, smooth
from pipeline.records import Resize
from pipeline.tables import Store
from pipeline.training.history import GRADIENT, LEARNING_RATE, MEMORY, SECONDS, WAITED, Row
from pipeline.training.settings import Training

TRAINING = Training(steps=400, batch_size=4, validation={"frames": "80%:"}, source="/data/mine/a.mp4")


def rows(count: int) -> list[Row]:
    """Steps of a quarter of a second, of which a fifth is waited; the loss falls by a hundredth a step from 5."""
    return [
        {
            "step": step, LEARNING_RATE: 1e-3, GRADIENT: 2.0, WAITED: 0.05, SECONDS: 0.25, MEMORY: 1500.0,
            "box": 5 - step / 100,
        }
        for step in range(1, count + 1)
    ]  # fmt: skip


class TestLine:
    def test_it_says_losses_speed_and_what_is_left(self) -> None:
        assert text(TRAINING, rows(200)) == (
            "step 200/400 | 0:50 left | 4.0 steps/s, 16 clips/s | box 3.495 | 20% waiting for data | 1.5 GB"
        )

    @pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (61.9, "1:01"), (3599, "59:59"), (7325, "2:02:05")])
    def test_durations(self, seconds: float, shown: str) -> None:
        assert duration(seconds) == shown

    def test_elsewhere_than_on_a_terminal_it_is_said_now_and_then(self) -> None:
        stream = io.StringIO()
        follow = Follow(TRAINING, lambda _: None, stream)
        for count in (20, 40, 60, 400):
            follow(rows(count))
        assert [line.split(" | ")[0] for line in stream.getvalue().splitlines()] == ["step 20/400", "step 400/400"]

    def test_on_a_terminal_it_is_drawn_anew_and_never_wraps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: True)
        follow = Follow(TRAINING, lambda _: None, stream)
        for count in (20, 400):
            follow(rows(count))
        drawn = stream.getvalue().split("\r\x1b[2K")
        assert [len(line.rstrip("\n")) for line in drawn] == [0, 39, 39]
        assert stream.getvalue().count("\n") == 1

    def test_what_was_heard_is_written_where_a_training_stops(self) -> None:
        written: list[int] = []
        follow = Follow(TRAINING, lambda heard: written.append(len(heard)), io.StringIO())
        follow.stopped()
        follow(rows(20))
        follow.stopped()
        assert written == [20]
        follow(rows(400))
        follow.stopped()
        assert written == [20]


class TestCharts:
    def test_points_lie_where_the_axes_say(self) -> None:
        drawn = lines([Curve("loss", np.array([0.0, 50.0, 100.0]), np.array([3.0, 0.0, 1.5]))], "loss", "step")
        points = re.findall(r'points="([^"]+)"', drawn)[0].split()
        place = [tuple(float(number) for number in point.split(",")) for point in points]
        assert [x for x, _ in place] == [44.0, 196.0, 348.0]  # from the left edge to the right one
        assert [y for _, y in place] == [53.0, 182.0, 117.5]  # of an axis from 182 at 0 up to 10 at 4
        assert re.findall(r'text-anchor="end">([^<]+)<', drawn) == ["0", "2", "4"]

    def test_what_is_below_zero_or_no_number_or_alone(self) -> None:
        low = lines([Curve("MOTA", np.array([1.0, 2.0]), np.array([-0.3, 0.5]))], "", "step")
        assert re.findall(r'text-anchor="end">([^<]+)<', low) == ["-.4", "0", ".6"]
        little = lines([Curve("MOTA", np.array([1.0, 2.0]), np.array([-0.001, 0.8]))], "", "step")
        assert re.findall(r'text-anchor="end">([^<]+)<', little) == ["-.2", "0", ".8"]
        assert lines([Curve("a", np.array([1.0, 2.0]), np.array([np.nan, 1.0]))], "", "step").count("<circle") == 1
        assert "polyline" not in lines([Curve("a", np.zeros(2), np.full(2, np.nan))], "", "step")

    def test_bands_end_where_the_axes_do(self) -> None:
        x = np.array([1.0, 2.0])
        drawn = lines([Curve("a", x, x)], "", "step", [Band(x, x * 0, x * 100)])
        heights = [float(p.split(",")[1]) for p in re.findall(r'<polygon[^>]* points="([^"]+)"', drawn)[0].split()]
        assert (min(heights), max(heights)) == (10.0, 182.0)

    def test_many_steps_are_means_of_neighbours(self) -> None:
        steps = columns_of(rows(6000))
        drawn = smooth(steps, "box", "box").svg
        assert len(re.findall(r'<polyline[^>]* points="([^"]+)"', drawn)[0].split()) == 120
        assert len(drawn) < 8000


class TestPage:
    @pytest.fixture
    def page(self, tmp_path: Path) -> str:
        about = {"identity": {"training": {"model": "smot", "source": TRAINING.source}}, "state": "running"}
        scores = [{"step": 50, "mAP": 0.25, "HOTA": 0.5}, {"step": 100, "mAP": 0.125, "HOTA": 0.625}]
        folder = Folder(Store(str(tmp_path)), about)
        return render(
            folder, Made(TRAINING, ("fly",), "d1g3st", command="trackloom train"), columns_of(rows(100)), scores
        )

    def test_it_shows_all_that_the_tables_hold(self, page: str) -> None:
        headings = re.findall(r"<h3>([^<]+)</h3>", page)
        assert headings[:2] == ["Scores on the validation videos", "box"]
        assert len(headings) == page.count("<svg") == 7
        assert page.count("<polyline") == 6 + 2
        assert '<b data-steps="100">100</b> of 400 steps' in page
        assert "<b>20%</b> of it waiting for data" in page
        assert dict(re.findall(r'data-metric="(\w+)">([^<]+)<', page)) == {"mAP": "0.250", "HOTA": "0.500"}
        assert "after step 50: the best mAP so far" in page

    def test_it_needs_no_network_and_suits_the_dark(self, page: str) -> None:
        assert not re.findall(r'(?:src|href)="(?!data:)', page)
        assert "prefers-color-scheme: dark" in page
        assert "/data/mine" not in page

    def test_before_the_first_step(self, tmp_path: Path) -> None:
        about = {"identity": {"training": {}}, "state": "running"}
        page = render(Folder(Store(str(tmp_path)), about), Made(TRAINING, ("fly",), ""), {}, [])
        assert "<svg" not in page
        assert "No scores" in page


class TestCard:
    def test_it_says_what_a_reader_should_know(self) -> None:
        made = Made(TRAINING, ("fly", "bee"), "d1g3st", half=True, command="trackloom train a.mp4", commit="c0ffee")
        facts = {"losses": {"box": 0.25}, "cpu_minutes": 3.21, "megabytes": 1.04, "begun": "; from step 0 at commit x"}
        assert card("mine", made, 300, {"mAP": 0.5}, facts) == (
            "# mine\n\n"
            "Weights of `smot`, trained on catalog `synthetic` `source=a.mp4`. Classes: fly, bee.\n\n"
            "- made by: `trackloom train a.mp4` at commit c0ffee; from step 0 at commit x\n"
            "- data: digest d1g3st\n"
            "- 400 steps of 4 frames, taken after step 300, seed 0, 3.2 CPU-minutes\n"
            "- 16-bit floats, 1.0 MB\n"
            "- loss, mean of the hundred steps before: box 0.250\n"
            "- on `source=a.mp4`, `frames=80%:`, linker `keep`: mAP 0.500\n"
        )

    def test_the_size_of_frames_goes_with_the_weights_where_it_is_no_model_s_own(self) -> None:
        assert Made(TRAINING, (), "", resize=Resize(short_side=256)).metadata(1)["resize"] == '{"short_side": 256}'
        assert Made(TRAINING, (), "", resize=Resize(size=(64, 96))).metadata(1)["resize"] == '{"size": [64, 96]}'

    @pytest.mark.parametrize(
        ("given", "left"),
        [
            ("/data/ILSVRC2015/", "ILSVRC2015"),
            ("--out=/tmp/x", "--out=x"),
            ("model.weights=file:///a/b.safetensors", "model.weights=b.safetensors"),
            ("/a/b.mp4,~/c/d e.mp4\n/f", "b.mp4,d e.mp4\nf"),
            ("models/weights/a.safetensors", "models/weights/a.safetensors"),
            ("s3://bucket/a/b", "s3://bucket/a/b"),
            (["/a/b", 3, {"x": "/c/d"}], ["b", 3, {"x": "d"}]),
        ],
    )
    def test_of_paths_of_a_machine_the_last_name_is_left(self, given: object, left: object) -> None:
        assert portable(given) == left
