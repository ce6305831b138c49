"""The table for a paper: the best in bold, marks that are those of the verdicts, and text that LaTeX takes as it is."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panollava.evaluation.comparison import Contender, standings, verdicts
from panollava.evaluation.paper_table import PaperTable, escape_latex, paper_table
from panollava.evaluation.predictions import Prediction

ODD = r"a_b 50% & #1 {x} $y$ ~ ^ \cmd <|im_end|> [0] * -- \"q\" `"


def contender(name: str, share: float, seed: int = 0, setting: str | None = None, pictures: int = 60) -> Contender:
    """A model that answers a share of the questions rightly."""
    right = np.random.default_rng(seed).random(pictures) < share
    predictions = tuple(
        Prediction(
            sample_id=str(picture),
            image_id=str(picture),
            kind="what",
            question="what is there?",
            prediction="a red ring" if is_right else "a blue ball",
            references=("a red ring",),
            latency_s=0.01,
        )
        for picture, is_right in enumerate(right)
    )
    return Contender(name, predictions, 80, None if setting is None else {"resampler": setting}, str(seed))


def table(models: list[Contender]) -> PaperTable:
    found = verdicts(models, "unicode")
    return paper_table(models, standings(models, "unicode"), found, "exact match", data="world-test")


def test_single_models_are_ranked_marked_and_said_to_be_single() -> None:
    models = [contender("bad", 0.2, 1), contender("best", 0.9, 2), contender("close", 0.85, 3)]
    head, _, *rows = table(models).text("markdown").split("\n\n")[0].splitlines()
    cells = [dict(zip(head[2:-2].split(" | "), row[2:-2].split(" | "), strict=True)) for row in rows]
    assert [row["run"] for row in cells] == ["best", "close", "bad"]
    scores = [row["exact match, %"] for row in cells]
    assert re.fullmatch(r"\*\*\d\d\.\d\*\* \(\d\d\.\d to \d\d\.\d\)", scores[0])
    assert re.fullmatch(r"\d\d\.\d \(\d\d\.\d to \d\d\.\d\)", scores[1])
    assert re.fullmatch(r"\d\d\.\d\\\* \(\d\d\.\d to \d\d\.\d\)", scores[2])
    caption = table(models).caption
    assert "60 questions about 60 pictures" in caption
    assert (
        "* differs from the best row, best, by exact match at 5 % (paired permutation test over pictures, Holm's "
        in caption
    )
    assert "correction for 3 pairs)" in caption
    assert "The marks are about these trained models; about the settings nothing is shown: the config of a" in caption


def test_settings_are_rows_with_seeds() -> None:
    models = [
        contender(f"{name}{seed}", share, seed + 10 * place, name)
        for place, (name, share) in enumerate({"mlp": 0.2, "bimamba": 0.9}.items())
        for seed in range(3)
    ]
    made = table(models)
    best, other = made.rows
    assert [best[0].text, best[1].text, other[0].text] == ["resampler=bimamba", "3", "resampler=mlp"]
    assert (best[2].is_best, best[2].mark, other[2].is_best, other[2].mark) == (True, "", False, "*")
    assert "over seeds (Welch's t-test) as well as by picture" in made.caption
    assert "these trained models" not in made.caption


def test_models_that_were_still_learning_are_marked_and_the_caption_says_what_that_means() -> None:
    models = [contender("a", 0.5, 1), contender("b", 0.6, 2)]
    assert table(models).caption.endswith("Of 2 of 2 models it is not known whether they were still learning.")
    learnt = [replace(one, still_learning=False) for one in models]
    assert table(learnt).caption.endswith("No model was still learning when its training ended.")
    made = table([replace(models[0], still_learning=True), learnt[1]])
    assert made.caption.endswith("† was still learning when its training ended, so this ranks how fast, not how well.")
    assert {row[0].text: row[0].mark for row in made.rows} == {"a": "†", "b": ""}


def test_columns_that_are_level_have_no_best() -> None:
    made = table([contender("a", 0.5, 1), contender("b", 0.5, 1)])
    assert not any(cell.is_best for row in made.rows for cell in row)


def test_csv_has_a_row_a_model_and_the_caption() -> None:
    lines = list(csv.reader(io.StringIO(table([contender("a,b", 0.3, 1), contender("c", 0.9, 2)]).text("csv"))))
    assert lines[0][:3] == ["run", "exact match, %", "exact match, %: interval"]
    assert [line[0] for line in lines[1:3]] == ["c", "a,b"]
    assert lines[2][1].endswith("*")
    assert lines[3][0].startswith("Scores on world-test")


SPECIAL = re.compile(r"(?<!\\)[&%#_^~$]|[<>|\"`]")


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_no_character_of_a_name_has_a_meaning_in_latex(text: str) -> None:
    escaped = escape_latex(text)
    assert not SPECIAL.search(escaped.replace(r"\`{}", "").replace("$-$", "")), escaped
    assert escaped.count("{") - escaped.count(r"\{") == escaped.count("}") - escaped.count(r"\}")
    assert "--" not in escaped.replace("{--}", "")
    assert "\n" not in escaped
    assert set(re.findall(r"\\([a-z]+)", escaped)) <= {
        "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "dag",
    }  # fmt: skip


def test_letters_are_kept() -> None:
    assert escape_latex("모델 c_abstractor") == r"모델 c\_abstractor"


def test_a_latex_table_compiles(tmp_path: Path) -> None:
    models = [contender(ODD, 0.2, 1), contender(f"[{ODD}", 0.9, 2), contender(f"*{ODD}", 0.6, 3)]
    text = table([replace(one, still_learning=True) for one in models]).text("latex")
    assert text.startswith("\\begin{table}\n")
    assert all(
        line.count(" & ") == text.splitlines()[6].count(" & ") for line in text.splitlines() if line.endswith(r"\\")
    )
    if (program := shutil.which("pdflatex")) is None:
        pytest.skip("there is no pdflatex")
    page = f"\\documentclass{{article}}\n\\begin{{document}}\n{text}\\end{{document}}\n"
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    done = subprocess.run(
        [program, "-halt-on-error", "-interaction=nonstopmode", "page.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_seeds_of_one_setting_are_single_models() -> None:
    models = [replace(contender(f"m{seed}", 0.5, seed), setting={}) for seed in range(2)]
    assert [row[0].text for row in table(models).rows] in (["m0", "m1"], ["m1", "m0"])
