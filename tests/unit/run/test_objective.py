"""stage.vision.loss: which keys go with which objective, and what `auto` and null stand for."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf
from support.runs import config

from panollava.component import component_names, find_component
from panollava.config.check import check_section
from panollava.crop.cameras import camera_tensor
from panollava.crop.matches import LEAST_COMMON
from panollava.crop.strategies import AnyresE2pCrop, AnyresMaxCrop, CropStrategy, CubemapCrop, E2pCrop
from panollava.losses.objective.densecl import DenseclObjective
from panollava.run.config_check import check_objective, checked
from panollava.run_folder import differing_keys
from panollava.stages.vision import build_objective, pairing_note

ROOM = "losses.objective"
HORIZON = camera_tensor(AnyresE2pCrop().cameras())
TYPES = component_names(ROOM, "Objective")


def section(**changes: Any) -> dict[str, Any]:
    """The section as runs up to version 0.2 recorded it, with the keys of all objectives, and changes."""
    keys = ("head_width", "pairing", "invariance", "variance", "covariance", "temperature", "negatives")
    return {"type": "auto", **dict.fromkeys(keys), **changes}


def plain(*arguments: str) -> dict[str, Any]:
    """The whole config of a command line."""
    values = OmegaConf.to_container(config(*arguments), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@pytest.mark.parametrize("name", TYPES)
def test_an_option_has_the_keys_and_defaults_of_its_objective(name: str) -> None:
    shipped = plain(f"objective={name}")["stage"]["vision"]["loss"]
    _, settings = build_objective(section(type=name), has_grid=True, resampler="mlp", cameras=HORIZON)
    assert shipped == {**settings, "head_width": None}


def test_auto_has_the_keys_of_what_it_may_be() -> None:
    shipped = plain()["stage"]["vision"]["loss"]
    assert set(shipped) == set(plain("objective=vicreg")["stage"]["vision"]["loss"])
    assert {key: value for key, value in shipped.items() if value is not None} == {"type": "auto"}


@pytest.mark.parametrize("name", ["auto", *TYPES])
def test_every_objective_is_a_choice(name: str) -> None:
    assert checked(config(f"objective={name}")).stage.vision.loss.type == name


def test_short_forms_and_the_keys_that_are_recorded_are_one_thing() -> None:
    short = plain("objective=densecl", "objective.pairing=rays", "objective.head_width=8")
    full = ["stage.vision.loss.type=densecl", "stage.vision.loss.pairing=rays", "stage.vision.loss.head_width=8"]
    assert short == plain(*full)
    assert short["stage"]["vision"]["loss"] == {
        "type": "densecl",
        "head_width": 8,
        "pairing": "rays",
        "temperature": 0.07,
        "negatives": "pair",
    }


SAME = [
    ([], {}),
    (["objective.pairing=rays"], {"pairing": "rays"}),
    *(([f"objective={name}"], {"type": name}) for name in TYPES),
    (["objective=densecl", "objective.temperature=0.1"], {"type": "densecl", "temperature": 0.1}),
]


@pytest.mark.parametrize(("arguments", "recorded"), SAME)
def test_a_run_that_recorded_nulls_is_the_same_run(arguments: list[str], recorded: dict[str, Any]) -> None:
    now = plain(*arguments)
    old = plain(*arguments)
    old["stage"]["vision"]["loss"] = section(**recorded)
    assert differing_keys("vision", now, old) == {}


@pytest.mark.parametrize(
    ("arguments", "recorded", "key"),
    [
        (["objective=vicreg", "objective.pairing=rays"], {"type": "vicreg"}, "pairing"),
        (["objective=densecl", "objective.temperature=0.1"], {"type": "densecl"}, "temperature"),
        (["objective.pairing=columns"], {}, "pairing"),
        (["objective=vicreg"], {}, "type"),
    ],
)
def test_another_value_than_null_stood_for_is_another_run(
    arguments: list[str], recorded: dict[str, Any], key: str
) -> None:
    now, old = plain(*arguments), plain(*arguments)
    old["stage"]["vision"]["loss"] = section(**recorded)
    assert f"stage.vision.loss.{key}" in differing_keys("vision", now, old)


def test_auto_is_what_the_resampler_can_do() -> None:
    assert build_objective(section(), has_grid=True, resampler="mlp", cameras=HORIZON)[1] == {
        "type": "vicreg",
        "pairing": "columns",
        "invariance": 25.0,
        "variance": 25.0,
        "covariance": 1.0,
    }
    objective, settings = build_objective(section(variance=5.0), has_grid=False, resampler="qformer", cameras=HORIZON)
    assert settings == {"type": "vicreg_pooled", "invariance": 25.0, "variance": 5.0, "covariance": 1.0}
    assert not objective.correspondences.needs_grid


def test_given_keys_reach_the_objective() -> None:
    given = section(type="densecl", negatives="batch", temperature=0.2, pairing="rays")
    assert check_objective(given) == []
    objective, settings = build_objective(given, has_grid=True, resampler="mlp", cameras=HORIZON)
    assert isinstance(objective, DenseclObjective)
    assert (objective.temperature, objective.coupled, objective.correspondences.pairing) == (0.2, "negatives", "rays")
    assert settings == {"type": "densecl", "pairing": "rays", "temperature": 0.2, "negatives": "batch"}


@pytest.mark.parametrize("name", [name for name in TYPES if name != "vicreg_pooled"])
def test_places_of_a_grid_need_one(name: str) -> None:
    with pytest.raises(ValueError, match=rf"type={name} .*resampler=qformer keeps no grid.*type=auto or vicreg_pooled"):
        build_objective(section(type=name), has_grid=False, resampler="qformer", cameras=HORIZON)


def test_a_pairing_without_a_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pairing=rays .*type=auto, which is vicreg_pooled here.*qformer keeps no"):
        build_objective(section(pairing="rays"), has_grid=False, resampler="qformer", cameras=HORIZON)


WRONG = [
    ({"temperature": 0.1}, ["temperature=0.1 is a key of densecl, not of stage.vision.loss.type=auto", "vicreg here"]),
    ({"type": "densecl", "variance": 1.0}, ["variance=1.0", "vicreg, vicreg_batch, vicreg_pooled, not", "temperature"]),
    ({"type": "vicreg_pooled", "pairing": "rays"}, ["pairing=rays", "densecl, vicreg, vicreg_batch"]),
    ({"type": "vicreg_bach"}, ["type=vicreg_bach", "Did you mean vicreg_batch?", "auto, densecl"]),
    ({"type": None}, ["type=None", "Available: auto"]),
    ({"type": "densecl", "temperature": 0.0}, ["stage.vision.loss.temperature=0.0", "0.01"]),
    ({"type": "densecl", "negatives": "all"}, ['negatives="all"', "'pair' or 'batch'"]),
    ({"covariance": -1.0}, ["stage.vision.loss.covariance=-1.0", "greater than or equal to 0"]),
    ({"pairing": "rows"}, ['pairing="rows"', "'columns' or 'rays'"]),
    ({"head_width": 0}, ["stage.vision.loss.head_width=0"]),
    ({"weight": None}, ["stage.vision.loss.weight is not a key here"]),
]


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_one_problem_is_one_message(changes: dict[str, Any], said: list[str]) -> None:
    (problem,) = check_objective(section(**changes))
    assert all(part in problem for part in said)


@pytest.mark.parametrize("name", TYPES)
def test_defaults_pass_the_objectives_own_check(name: str) -> None:
    _, settings = build_objective(section(type=name), has_grid=True, resampler="mlp", cameras=HORIZON)
    assert settings.pop("type") == name
    assert check_section(settings, find_component(ROOM, name, "Objective"), "stage.vision.loss") == []


@pytest.mark.parametrize(
    ("crop", "pairing"),
    [
        (E2pCrop(pitch_rows_deg=(-45.0, 0.0, 45.0)), "rays"),
        (AnyresE2pCrop(pitch_rows_deg=(-10.0, 10.0)), "rays"),
        (E2pCrop(pitch_rows_deg=(0.0,)), "columns"),
        (CubemapCrop(poles=True), "columns"),  # the tiles at the poles have no neighbours
        (AnyresMaxCrop(), "columns"),  # cut out of the panorama itself, whose columns are meridians
    ],
)
def test_auto_pairs_rays_where_columns_cannot_look_the_same_way(crop: CropStrategy, pairing: str) -> None:
    cameras = camera_tensor(crop.cameras())
    assert build_objective(section(), has_grid=True, resampler="mlp", cameras=cameras)[1]["pairing"] == pairing
    asked = section(pairing="columns")
    assert build_objective(asked, has_grid=True, resampler="mlp", cameras=cameras)[1]["pairing"] == "columns"
    assert build_objective(section(), has_grid=False, resampler="x", cameras=cameras)[1]["type"] == "vicreg_pooled"


def test_the_angle_between_paired_columns_is_told() -> None:
    rows = camera_tensor(E2pCrop(pitch_rows_deg=(-45.0, 0.0, 45.0)).cameras())
    columns, _ = build_objective(section(pairing="columns"), has_grid=True, resampler="mlp", cameras=rows)
    note = pairing_note(columns, rows, (16, 16))
    assert "14.5 degrees past each other on average, 35.5 at most" in note
    assert "stage.vision.loss.pairing=rays" in note
    level = pairing_note(columns, HORIZON, (16, 16))
    assert "degrees past each other" in level
    assert "rays" not in level
    rays, _ = build_objective(section(), has_grid=True, resampler="mlp", cameras=rows)
    assert pairing_note(rays, rows, (16, 16)) == ""
    assert pairing_note(columns, rows, None) == ""


def test_chosen_views_are_paired_by_rays() -> None:
    given = {"has_grid": True, "resampler": "mlp", "cameras": HORIZON, "is_adaptive": True}
    objective, settings = build_objective(section(), **given)
    assert settings["pairing"] == objective.correspondences.pairing == "rays"
    assert objective.correspondences.least_common == LEAST_COMMON
    with pytest.raises(ValueError, match=r"loss\.pairing=columns pairs neighbours of a ring.*pairing=rays"):
        build_objective(section(pairing="columns"), **given)
    pooled, _ = build_objective(section(), **{**given, "has_grid": False})
    assert pooled.correspondences.least_common == LEAST_COMMON
