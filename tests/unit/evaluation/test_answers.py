"""Normalisation and exact match, and what guessing reaches."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panollava.evaluation.exact_match import is_correct, majority_answer, score_answers
from panollava.evaluation.statistics import mean_interval
from panollava.evaluation.words import fold, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The Left. ", "left"),
        ("An apple!", "apple"),
        ("A", "a"),
        ("a.", "a"),
        ("The", "the"),
        ("theatre", "theatre"),
        ("In the back", "in the back"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("ｒｅｄ", "red"),
        ("two\n\tballs", "two balls"),
        ("빨강。", "빨강"),
        ("cafe\u0301", "café"),
        ("3.5", "3.5"),
        ("-45°", "-45°"),
        ("?", "?"),
        ("it’s a ‘T‑shirt’", "it's a 't-shirt'"),
        ("red\u200b\u00a0ring\u00ad", "red ring"),
        ("１２ °", "12 °"),
        ("−45˚", "-45°"),
        ("ﬁve ﬂags", "five flags"),
        ("\u1107\u1161\u11af\u1100\u1161\u11bc", "발강"),
        ("ﾊﾞｽ", "バス"),
        ("5 km²", "5 km²"),
        ("5 ㎢", "5 km²"),
        ("", ""),
    ],
)
def test_normalise(text, expected) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [("10²", "102"), ("H₂O", "H2O"), ("1½", "11/2"), ("①", "1"), ("⑴", "(1)"), ("⒈", "1."), ("㏠", "1日")],
)
def test_digits_of_another_kind_are_other_digits(one: str, other: str) -> None:
    assert not is_correct(one, [other])
    assert fold(f"5{one}") == fold(fold(f"5{one}"))


@given(text=st.text(), changed=st.data())
def test_how_a_text_is_written_does_not_count(text: str, changed: st.DataObject) -> None:
    """Decomposed, full-width or with characters that nobody sees in it, it is the same, and no digits come or go."""
    assert fold(unicodedata.normalize("NFD", text)) == fold(unicodedata.normalize("NFC", text))
    place = changed.draw(st.integers(0, len(text)))
    assert fold(text[:place].replace("\u0338", "") + "\u200b") == fold(text[:place].replace("\u0338", ""))
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)
    assert fold(wide) == fold(text)

    def digits(of: str) -> list[int]:
        return [unicodedata.digit(char) for char in unicodedata.normalize("NFC", of) if char.isdecimal()]

    assert digits(fold(text)) == digits(text)


def test_any_reference_counts_and_nothing_is_never_right() -> None:
    assert is_correct("The ball.", ["sphere", "ball"])
    assert not is_correct("ball and cube", ["ball"])
    assert not is_correct("", ["", "ball"])
    assert not is_correct("  ", [" "])


def test_majority_is_the_best_constant_answer() -> None:
    answer, share = majority_answer([("Red", "crimson"), ("red.",), ("Red",), ("blue", "blue")])
    assert (answer, share) == ("Red", 0.75)
    assert majority_answer([("b",), ("a",)]) == ("a", 0.5)


def test_report_per_type_beside_guessing_and_blank_pictures(answer) -> None:
    predictions = [
        answer("red", "red"),
        answer("red", "red"),
        answer("blue", "red"),
        answer("green", "green"),
        answer("left", "left", kind="where"),
        answer("right", "left", "to the left", kind="where"),
    ]
    blank = [answer("red", *each.references, kind=each.kind, sample_id=each.sample_id) for each in predictions]
    report = score_answers(predictions, blank)
    assert report.count == 6
    assert report.exact_match == pytest.approx(4 / 6)
    assert report.majority_share == pytest.approx(5 / 6)
    assert report.blank_exact_match == pytest.approx(3 / 6)
    color, where = report.kinds["color"], report.kinds["where"]
    assert (color.count, color.exact_match, color.majority_answer) == (4, 0.75, "red")
    assert (color.majority_share, color.blank_exact_match) == (0.75, 0.75)
    assert (where.count, where.exact_match, where.majority_answer) == (2, 0.5, "left")
    assert (where.majority_share, where.blank_exact_match) == (1.0, 0.0)
    metrics = report.metrics()
    assert metrics["exact_match/where"] == 0.5
    assert metrics["blank/where"] == 0.0
    assert metrics["majority"] == report.majority_share


def test_without_blank_pictures_there_is_no_such_number(answer) -> None:
    report = score_answers([answer("red", "red")])
    assert report.blank_exact_match is None
    assert report.blank_interval is None
    assert report.interval is None  # of one picture
    assert set(report.metrics()) == {"exact_match", "majority", "exact_match/color", "majority/color"}


def test_intervals_are_over_pictures(answer) -> None:
    predictions = [
        answer("red" if number % 4 else "blue", "red", sample_id=f"{number}-{again}", image_id=f"{number}")
        for number in range(40)
        for again in range(5)
    ]
    report = score_answers(predictions)
    expected = mean_interval([float(number % 4 != 0) for number in range(40)], [f"{number}" for number in range(40)])
    assert report.interval == pytest.approx((expected.low, expected.high))
    assert report.kinds["color"].interval == report.interval
    metrics = report.metrics()
    assert (metrics["exact_match_low"], metrics["exact_match_high"]) == report.interval


def test_scores_that_would_not_compare_are_refused(answer) -> None:
    with pytest.raises(ValueError, match="No question was evaluated"):
        score_answers([])
    with pytest.raises(ValueError, match="other questions"):
        score_answers([answer("red", "red", sample_id="a")], [answer("red", "red", sample_id="b")])
    twice = [answer("red", "red", sample_id="a"), answer("red", "red", sample_id="a")]
    with pytest.raises(ValueError, match="2 answers against 1"):
        score_answers(twice[:1], twice)
