"""The result table in a terminal and in Markdown."""

from __future__ import annotations

from panollava.evaluation.exact_match import markdown_table, score_answers, text_table


def test_fixed_width(answer) -> None:
    predictions = [
        answer("red", "red"),
        answer("blue", "red"),
        answer("left", "왼쪽", kind="어디"),
    ]
    blank = [answer("", *each.references, kind=each.kind, sample_id=each.sample_id) for each in predictions]
    assert text_table(score_answers(predictions, blank)).splitlines() == [
        "question type  questions  exact match  blank picture  majority answer  its share",
        "-------------  ---------  -----------  -------------  ---------------  ---------",
        "color                  2       50.0 %          0.0 %  red                100.0 %",
        "어디                   1        0.0 %          0.0 %  왼쪽               100.0 %",
        "-------------  ---------  -----------  -------------  ---------------  ---------",
        "all                    3       33.3 %          0.0 %                     100.0 %",
    ]


def test_markdown_keeps_its_columns(answer) -> None:
    lines = markdown_table(score_answers([answer("x", "a|b\n" + "c" * 60)])).splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: | --- | ---: |"
    assert lines[2].startswith("| color | 1 | 0.0 % | – | a\\|b cccc")
    assert lines[2].endswith("c… | 100.0 % |")
    assert len(lines) == 4
