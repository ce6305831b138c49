"""The study of certificates: its tests are those of the library, and runs that do not belong to it are refused."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest

from experiments.certificates.study import (
    COLUMNS,
    DESIGN,
    against_none,
    between,
    read_results,
    read_study,
    word,
    write_report,
)
from panollava.evaluation.certificates import NAMES
from panollava.evaluation.statistics import holm, student_p

HERE = Path(__file__).parents[2] / "experiments" / "certificates"
STUDY = read_study(HERE / "contrasts.yaml")
Change = Callable[[str, int, str], float | None]


def drawn_change(name: str, seed: int, certificate: str) -> float | None:
    """Around 0, but with a loss of 30 points at other latitudes; no tile phase on the cube."""
    if (name, certificate) == ("cubemap", "tile_phase"):
        return None
    rng = np.random.default_rng([seed, NAMES.index(certificate), list(STUDY.designs).index(name)])
    return float(rng.normal(-0.3 if certificate == "latitude" else 0.0, 0.01))


def keep(folder: Path, change: Change = drawn_change, learning: str = "no") -> Path:
    """Rows of all runs."""
    shutil.copy(HERE / "contrasts.yaml", folder)
    head = ["run", "seed", *DESIGN, "exact_match", "learning", "certificate", *COLUMNS]
    with (folder / "rows.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, head)
        table.writeheader()
        for name, setting in STUDY.designs.items():
            for seed in STUDY.seeds:
                for one in NAMES:
                    found = change(name, seed, one)
                    verdict = "not applicable" if found is None else "fires" if abs(found) > 0.1 else "passes"
                    row = {"run": name, "seed": seed, "exact_match": 0.98, "learning": learning, "certificate": one}
                    table.writerow({**row, **setting, "verdict": verdict, "difference": found})
    return folder


def test_the_test_against_no_change_is_that_of_one_sample(tmp_path: Path) -> None:
    results = read_results(STUDY, keep(tmp_path) / "rows.csv")
    alone = against_none(results)
    assert len(alone) == 8 * len(NAMES) - 1
    own = [results.own(*key) for key in alone]
    p = [student_p(abs(fmean(one)) / (stdev(one) / len(one) ** 0.5), len(one) - 1) for one in own]
    assert [one.p_value for one in alone.values()] == pytest.approx(p)
    assert [one.adjusted_p for one in alone.values()] == pytest.approx(holm(p)[0])
    assert {key[1] for key, one in alone.items() if one.is_distinguishable} == {"latitude"}


def test_contrasts_without_results_count_in_the_correction(tmp_path: Path) -> None:
    results = read_results(STUDY, keep(tmp_path) / "rows.csv")
    found = between(results)
    missing = [(one.second, one.certificate) == ("cubemap", "tile_phase") for one in STUDY.contrasts]
    assert [one is None for one in found] == missing
    tested = [(one, pair) for one, pair in zip(found, STUDY.contrasts, strict=True) if one is not None]
    plain = [one.p_value for one, _ in tested]
    assert [one.adjusted_p for one, _ in tested] == pytest.approx(holm([*plain, 1.0])[0][:-1])
    for one, pair in tested:
        first, second = (results.own(name, pair.certificate) for name in (pair.first, pair.second))
        assert one.difference.value == pytest.approx(fmean(second) - fmean(first))


def test_the_direction_of_a_contrast_is_said(tmp_path: Path) -> None:
    def change(name: str, seed: int, certificate: str) -> float | None:
        value = 0.0 if certificate == "view_loss" else drawn_change(name, seed, certificate)
        is_worse = (name, certificate) == ("no position code", "view_order")
        return value if value is None else value - 0.5 * is_worse

    results = read_results(STUDY, keep(tmp_path, change) / "rows.csv")
    words = {
        (one.second, one.certificate): word(found) for one, found in zip(STUDY.contrasts, between(results), strict=True)
    }
    assert words["no position code", "view_order"] == "loses more"
    assert words["cubemap", "tile_phase"] == "not tested yet"
    assert words["mlp", "view_loss"] == "not tested, as the runs of a design do not differ"
    assert words["bimamba", "view_order"].startswith("cannot tell (would need ")


def test_the_report_says_what_is_missing_and_still_learning(tmp_path: Path) -> None:
    text = write_report(keep(tmp_path, learning="yes"))
    assert "40 of 40 runs have certificates. Still learning when training ended: 5 of mlp, 5 of bimamba" in text
    assert "Not known:" not in text
    assert text.count("| 5 of 5 of ") == text.count("no verdict on quality") == len(STUDY.contrasts)
    row = next(line for line in text.splitlines() if line.startswith("| cubemap "))
    assert row.split("|")[7].strip() == "–"
    assert row.split("|")[6].strip().endswith(" (5)")
    assert {path.name for path in tmp_path.iterdir()} >= {"designs.md", "designs.png"}
    (tmp_path / "rows.csv").write_text((tmp_path / "rows.csv").read_text().replace(",yes,", ",unknown,"))
    assert "ended: none. Not known: 5 of mlp, 5 of bimamba" in write_report(tmp_path)
    lines = (tmp_path / "rows.csv").read_text().splitlines(keepends=True)
    (tmp_path / "rows.csv").write_text("".join(lines[:9]))  # one run
    text = write_report(tmp_path)
    assert "1 of 40 runs have certificates." in text
    assert text.count("**not tested yet**") == len(STUDY.contrasts)


def test_the_report_names_what_other_crops_were_asked_in_other_changes(tmp_path: Path) -> None:
    keep(tmp_path)
    assert "do not compare in it: no certificate." in write_report(tmp_path)
    with (tmp_path / "rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        is_cube = row["crop"] == "cubemap"
        swapped = "crop.renderer=torch" if is_cube else "crop.overlap=0.25; crop.renderer=torch"
        row["changes"] = {"crop_swap": swapped, "view_loss": f"grey={int(is_cube)}"}.get(row["certificate"], "order=1")
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    assert "do not compare in it: crop_swap." in write_report(tmp_path)


def test_runs_that_do_not_belong_to_it_are_refused(tmp_path: Path) -> None:
    path = keep(tmp_path) / "rows.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    with pytest.raises(ValueError, match="mlp has two runs of seed 31"):
        read_results(STUDY, path)
    path.write_text("".join([lines[0], lines[1].replace("yaw_pitch", "learned")]))
    with pytest.raises(ValueError, match="of no design and seed of the study"):
        read_results(STUDY, path)
    (tmp_path / "contrasts.yaml").write_text(
        "seeds: [1]\ndesigns: {}\ncontrasts: [{first: a, second: b, certificates: [yaw]}]\n"
    )
    with pytest.raises(ValueError, match="contrasts name a, b, which is no design"):
        read_study(tmp_path / "contrasts.yaml")
