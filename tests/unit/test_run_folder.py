"""The record of an experiment on disk: names, owner, states, and what counts as another run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from panollava import run_folder
from panollava.checkpoint import BEST, TRAINED, point, write_checkpoint
from panollava.run_folder import Experiment, differing_keys, experiment_name, find_run_folder, is_run, short_name

CONFIG = {
    "seed": 0,
    "crop": {"type": "anyres_e2p", "overlap": 0.5},
    "trainer": {"num_workers": 2, "clip_norm": 1.0, "device": "auto"},
    "data": {
        "dir": "a",
        "train_csv": "a/train.csv",
        "val_csv": "a/val.csv",
        "test_csv": "a/test.csv",
        "augment": False,
        "shared_prefix": False,
    },
    "tracking": {"type": "mlflow"},
    "stage": {"run": ["vision"], "vision": {"epochs": 1, "lr": 0.1}, "finetune": {"lr": 0.1}},
}


def changed(key: str, value: object) -> dict:
    """CONFIG with one value changed."""
    import copy

    result = copy.deepcopy(CONFIG)
    *path, last = key.split(".")
    place: dict = result
    for part in path:
        place = place[part]
    place[last] = value
    return result


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("google/siglip2-so400m-patch14-224", "siglip2-so400m"),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("meta-llama/Llama-2-7b-chat-hf", "Llama-2-7b-chat"),
        ("/data/my models/encoder/", "encoder"),
        (r"C:\models\encoder", "encoder"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name) == short


def test_experiment_name() -> None:
    parts = {
        "vision": "google/siglip2-so400m-patch14-224",
        "language": "Qwen/Qwen3-0.6B",
        "resampler": "bimamba",
        "crop": "anyres_e2p",
    }
    name = experiment_name(**parts, position="yaw_pitch", overlap=0.5)
    assert name == "siglip2-so400m_Qwen3-0.6B_bimamba_anyres-e2p_PE"
    assert experiment_name(**parts, position="none", overlap=0.25).endswith("anyres-e2p_ov025")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.num_workers", 0),
        ("tracking.type", "none"),
        ("stage.vision.epochs", 9),
        ("stage.finetune.lr", 9.0),
        ("stage.run", ["vision", "finetune"]),
        ("trainer.device", "cuda"),
        ("data.test_csv", "test_v2.csv"),
        ("data.test_csv", None),
    ],
)
def test_what_may_differ(key: str, value: object) -> None:
    assert differing_keys("vision", changed(key, value), CONFIG) == {}


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("crop.overlap", 0.0), ("stage.vision.lr", 1.0)])
def test_what_makes_another_run(tmp_path: Path, key: str, value: object) -> None:
    assert list(differing_keys("vision", changed(key, value), CONFIG)) == [key]
    with pytest.raises(ValueError, match=f"{key}.*experiment_name=.*overwrite=true"):
        Experiment(tmp_path, "x").check_same_config("vision", changed(key, value), CONFIG)


SPLIT = {"pictures": "p"}


@pytest.mark.parametrize(
    ("stage", "key", "value", "inputs"),
    [
        ("vision", "data.dir", "b", {}),
        ("vision", "data.dir", "b", {"train": SPLIT}),
        ("vision", "data.train_csv", "b/train.csv", {"val": SPLIT}),
        ("vision", "data.train_csv", None, {"train": SPLIT, "val": SPLIT}),
        ("vision", "data.augment", True, {"train": SPLIT, "val": SPLIT}),
        ("detect", "data.dir", "b", {"train": SPLIT, "val": SPLIT}),  # of a version that recorded no boxes
    ],
)
def test_a_path_counts_where_its_content_is_not_recorded(stage: str, key: str, value: object, inputs: dict) -> None:
    assert list(differing_keys(stage, changed(key, value), CONFIG, {"inputs": inputs})) == [key]


@pytest.mark.parametrize(("key", "value"), [("dir", "b"), ("image_dir", "b"), ("masks", "m"), ("val_csv", "b/val.csv")])
def test_a_path_is_free_where_its_content_is_recorded(key: str, value: str) -> None:
    inputs = {split: {**SPLIT, "places": "x"} for split in ("train", "val")}
    for stage in ("vision", "detect"):
        assert differing_keys(stage, changed(f"data.{key}", value), CONFIG, {"inputs": inputs}) == {}


def test_a_folder_of_a_backbone_may_be_moved(tmp_path: Path) -> None:
    def named(name: object) -> dict:
        return {"model": {"vision": {"name": str(name)}}}

    files, commit = ({"inputs": {"vision": record}} for record in ({"files": {"a": "1"}}, {"commit": "c"}))
    assert differing_keys("vision", named(tmp_path), named("/old"), files) == {}
    assert differing_keys("vision", named("hub/name"), named("/old"), files) != {}
    assert differing_keys("vision", named(tmp_path), named("hub/name"), commit) != {}
    assert differing_keys("vision", named(tmp_path), named("/old"), {}) != {}


@pytest.mark.parametrize(
    ("old", "new", "begun", "is_same"),
    [
        ("auto", "bf16", "bf16", True),
        ("auto", "fp32", "bf16", False),
        ("bf16", "auto", "bf16", True),
        ("bf16", "fp32", "bf16", False),
        ("auto", "bf16", None, False),
    ],
)
def test_auto_is_the_precision_that_a_run_was_begun_with(old: str, new: str, begun: str | None, is_same: bool) -> None:
    pair = ({"trainer": {"precision": value}} for value in (new, old))
    assert (differing_keys("vision", *pair, {"number_format": begun}) == {}) is is_same


def test_an_evaluation_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the experiment, or in the folder that the run was started in."""
    (tmp_path / "results" / "x").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for root, workplace in ((tmp_path / "runs" / "e", None), (tmp_path.parent / "other" / "e", tmp_path)):
        with Experiment(root, "crop_mlp") as experiment:
            assert experiment.evaluated("vision") is None
            experiment.record("vision", evaluated="results/x")
            run_folder.write_metadata(
                experiment.stage_folder("vision"),
                {"stage": "vision", "experiment_name": "e", "model": {}, "crop": {}, "workplace": str(workplace or "")},
                "",
            )
        assert experiment.evaluated("vision") == tmp_path / "results" / "x"
    (tmp_path / "results" / "x").rmdir()
    assert experiment.evaluated("vision") == Path("results/x")


def test_states_survive_and_clear(tmp_path: Path) -> None:
    with Experiment(tmp_path / "e", "crop_mlp") as experiment:
        experiment.record("vision", status="running")
        experiment.record("vision", status="finished", epochs=2)
        experiment.record("finetune", status="running")
    again = Experiment(tmp_path / "e", "crop_mlp")
    assert again.state("vision")["status"] == "finished"
    assert again.state("vision")["epochs"] == 2
    again.clear("vision")
    assert again.state("vision") == {}
    assert again.state("finetune")["status"] == "running"


def test_one_process_owns_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from panollava.run_folder import Experiment\n"
        f"with Experiment(Path({str(tmp_path / 'e')!r}), 'x'):\n    print('in')"
    )
    with Experiment(tmp_path / "e", "x"):
        refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "in use by another process" in refused.stderr
    assert "experiment_name=" in refused.stderr
    allowed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert allowed.stdout == "in\n"


def test_a_damaged_stage_state_says_the_way_out(tmp_path: Path) -> None:
    (tmp_path / run_folder.STAGES).write_text("{")
    with pytest.raises(ValueError, match="overwrite=true"):
        Experiment(tmp_path, "x").states()


def test_runs_are_found_from_any_of_their_places(tmp_path: Path) -> None:
    stage = tmp_path / "runs" / "e" / "finetune" / "crop_mlp"
    write_checkpoint(stage / "a.ckpt", {TRAINED: {}}, {"stage": "finetune"})
    run_folder.write_metadata(stage, {"stage": "finetune"}, "seed: 0\n")
    point(stage / BEST, stage / "a.ckpt")
    for place in (stage, stage / "a.ckpt", tmp_path / "runs" / "e"):
        assert find_run_folder(place) == stage
    assert run_folder.known_checkpoints(tmp_path / "runs", "finetune") == [stage]
    with pytest.raises(FileNotFoundError, match="finetune"):
        find_run_folder(tmp_path / "runs" / "other")


def test_records_of_an_older_form_say_the_model_that_they_meant() -> None:
    resampler = {"type": "c_abstractor", "depth": 1}
    loss = {"type": "auto", "pairing": None}
    old = {
        "model": {"join": "stitch", "resampler": resampler},
        "crop": {"pitch_rows_deg": [-45.0, 0.0]},
        "stage": {"vision": {"loss": loss}},
    }
    now = run_folder.upgraded(old)
    assert now["model"]["join"] == "stitch_nearest"
    assert now["model"]["resampler"] == {"positions_per_side": 0, "gate": "relu", "shortcut": False, **resampler}
    assert now["stage"]["vision"]["loss"]["pairing"] == "columns"
    assert loss["pairing"] is None  # what was given is left alone
    assert run_folder.upgraded({**old, "form": run_folder.FORM}) == {**old, "form": run_folder.FORM}
    level = run_folder.upgraded({**old, "crop": {"pitch_rows_deg": [0.0]}})
    assert level["stage"]["vision"]["loss"]["pairing"] is None
    assert run_folder.upgraded({"stage": "finetune"}) == {"stage": "finetune"}


@pytest.mark.parametrize("form", [None, run_folder.FORM])
def test_records_of_runs_that_fetched_pictures_are_the_same_runs_without_those_keys(form: int | None) -> None:
    data = {"type": "files", "train_csv": "a.csv", "shared_prefix": False}
    remote = {"remote": ["a.b"], "remote_cache": "cache/pictures", "remote_tries": 4, "remote_retry_dead": False}
    now = {"form": form, "model": {}, "data": data}
    old = {**now, "data": {**data, **remote}}
    assert run_folder.upgraded(old) == now
    assert "remote" in old["data"]
    assert run_folder.differing_keys("finetune", now, old) == {}
    assert run_folder.differing_keys("finetune", {**now, "data": {**data, "train_csv": "b.csv"}}, old) != {}


def test_a_run_of_the_world_without_levels_is_one_of_level_1() -> None:
    old: dict[str, Any] = {"form": 3, "model": {}, "data": {"type": "world", "seed": 0}}
    now = {**old, "data": {**old["data"], "level": 1, "kinds": None, "shared_prefix": False}}
    assert run_folder.upgraded(old) == now
    assert run_folder.differing_keys("finetune", now, old) == {}
    harder = {**now, "data": {**now["data"], "level": 2}}
    assert run_folder.differing_keys("finetune", harder, old) == {"data.level": (1, 2)}
    files = {**old, "data": {"type": "files", "shared_prefix": False}}
    assert run_folder.upgraded(files) == files
    assert run_folder.upgraded({**old, "data": {"type": "files"}}) == files


def test_going_on_with_a_run_of_an_older_form_names_what_means_something_else_now() -> None:
    old = {"model": {"join": "stitch", "resampler": {"type": "pool"}}, "seed": 0}
    now = {**old, "form": run_folder.FORM}
    assert run_folder.differing_keys("finetune", now, old) == {"model.join": ("stitch_nearest", "stitch")}
    kept = {**now, "model": {**old["model"], "join": "stitch_nearest"}}
    assert run_folder.differing_keys("finetune", kept, old) == {}
    plain = {"model": {"join": "concat", "resampler": {"type": "mlp", "shortcut": False}}}
    before = {"model": {"join": "concat", "resampler": {"type": "mlp"}}}
    for form in ({}, {"form": 2}):
        assert run_folder.differing_keys("finetune", {**plain, "form": run_folder.FORM}, {**before, **form}) == {}


def test_a_default_of_then_is_kept_where_todays_stands_and_is_not_named() -> None:
    now = {"form": run_folder.FORM, "model": {"size": "tiny", "resampler": {"type": "qformer", "layer_scale": True}}}
    now["stage"] = {"resampler": {"batch_size": 8}, "finetune": {"batch_size": 4}}
    old = {"form": 3, "model": {"size": "tiny", "resampler": {"type": "qformer"}}}
    old["stage"] = {"resampler": {"batch_size": 16}, "finetune": {"batch_size": 16}}
    kept = {"model.resampler.layer_scale": False, "stage.resampler.batch_size": 16}
    assert run_folder.earlier_defaults(old, now, []) == kept
    assert run_folder.earlier_defaults({**old, "form": run_folder.FORM}, now, []) == {}
    del kept["stage.resampler.batch_size"]
    assert run_folder.earlier_defaults(old, now, ["stage.resampler.batch_size"]) == kept
    assert run_folder.earlier_defaults(old, {**now, "model": {**now["model"], "size": "full"}}, []) == kept


def test_resamplers_of_form_3_have_no_layer_scale() -> None:
    for kind in ("qformer", "perceiver"):
        old = {"form": 3, "model": {"join": "concat", "resampler": {"type": kind, "shortcut": True}}}
        found = run_folder.upgraded(old)["model"]["resampler"]
        assert found == {"type": kind, "shortcut": True, "layer_scale": False}


def test_an_export_and_a_name_of_the_hub_are_no_runs(tmp_path: Path) -> None:
    assert is_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_run(tmp_path)
    assert not is_run(Path("user/repo"))
