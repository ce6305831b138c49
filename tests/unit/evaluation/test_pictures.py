"""Pictures: answers stand beside their panorama, and no text is too odd to be drawn."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from panollava.evaluation import drawing
from panollava.evaluation.comparison import drawn
from panollava.evaluation.drawing import (
    draw_tag,
    draw_text,
    encode_png,
    line_height,
    palette,
    tag_width,
    text_width,
    wrap_text,
)
from panollava.evaluation.gallery import answers_picture

GREY = np.full((320, 640, 3), 128, np.uint8)


def test_answers_stand_beside_the_panorama(answer) -> None:
    right = [answer("red", "red", question="What color?")]
    wrong = [answer("blue", "red", question="What color?")]
    pictures = [answers_picture(GREY, rows, width=1000) for rows in (right, wrong, [])]
    assert all((picture[:300, :600] == 128).all() for picture in pictures)
    ink = [(picture[:, 600:] != 255).any(-1).sum() for picture in pictures]
    assert ink[1] > ink[0] > ink[2] == 0
    many = answers_picture(GREY, wrong * 20, width=1000)
    assert many.shape[0] > pictures[0].shape[0]


@settings(max_examples=30, deadline=None)
@given(text=st.text(st.characters(codec=None), max_size=30))
def test_any_text_is_drawn_within_its_width(text) -> None:
    canvas = np.full((30, 300, 3), 255, np.uint8)
    draw_text(canvas, text, (-5, 4), size=14)
    for line in wrap_text(text, 100, 14, max_lines=3):
        assert text_width(line, 14) <= 100 or len(line) == 1


def test_korean_is_drawn_on_systems_without_such_a_font(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The font that comes with the package has every syllable and Latin letters; boxes would all look the same."""
    encode_png(GREY)  # ends what other tests drew
    caplog.clear()
    monkeypatch.setattr(drawing, "WIDE_FONTS", ("DejaVuSans.ttf",))
    patches = []
    for text in ("가", "힣", "뷁", "a", "b"):
        canvas = np.full((40, 60, 3), 255, np.uint8)
        draw_text(canvas, f"붉은 {text}"[-1], (0, 0), size=24)
        patches.append(canvas.tobytes())
        draw_text(canvas, f"붉은 {text}", (0, 0), size=24)
    encode_png(canvas)
    assert len(set(patches)) == 5
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("text", "package"), [("한글 여럿", "fonts-noto-cjk"), ("हिन्दी हिन्दी", "fonts-noto-core"), ("🎈", "fonts-symbola")]
)
def test_letters_that_no_font_knows_are_told_once_a_picture(
    text: str, package: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode_png(GREY)  # ends what other tests drew
    caplog.clear()
    monkeypatch.setattr(drawing, "WIDE_FONTS", ())
    monkeypatch.setattr(drawing, "KOREAN", Path("gone.ttf"))
    canvas = np.full((40, 300, 3), 255, np.uint8)
    for line in (text, "plain", text):
        draw_text(canvas, line, (0, 0), size=16)
    encode_png(canvas)
    assert [package in message for message in caplog.messages] == [True]
    encode_png(canvas)
    assert len(caplog.messages) == 1


def test_diagrams_have_korean_labels_and_tell_what_they_lack(caplog: pytest.LogCaptureFixture) -> None:
    for label, told in (("모델 하나", 0), ("\U00012000", 1)):
        figure = Figure(figsize=(3, 2), layout="constrained")
        axes = figure.add_subplot()
        axes.set_yticks([0, 1], [label, label])
        drawn(figure, axes)
        assert len(caplog.messages) == told


def test_long_text_is_cut_with_a_mark() -> None:
    lines = wrap_text("word " * 100, 120, 16, max_lines=3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert max(text_width(line, 16) for line in lines) <= 120
    assert wrap_text("", 120, 16, max_lines=3) == [""]


def test_a_tag_stays_inside_and_is_as_wide_as_it_says() -> None:
    for text, middle in (("7", (-50.0, 500.0)), ("123", (30.0, 20.0)), ("40", (1e6, -3.0))):
        canvas = np.full((60, 120, 3), 255, np.uint8)
        draw_tag(canvas, text, middle, size=16, colour=(255, 0, 0))
        rows, columns = np.nonzero((canvas != 255).any(-1))
        assert columns.max() - columns.min() + 1 == tag_width(text, 16)
        assert rows.max() - rows.min() + 1 == line_height(16)
        assert (canvas[rows, columns] == (255, 0, 0)).all(-1).any()
        assert (canvas.max(-1) < 100).any()  # the letters


def test_colours_differ_and_neighbours_most() -> None:
    colours = palette(40)
    assert len(set(colours)) == 40
    assert palette(0) == []
    steps = np.diff(np.array(colours), axis=0)
    assert np.abs(steps).max(axis=1).min() > 100
    assert min(max(colour) for colour in colours) > 120  # dark letters can be read on them


def test_a_written_picture_is_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert (np.asarray(Image.open(BytesIO(encode_png(picture)))) == picture).all()
