"""Every file of conf/ composes, passes the strict check, and says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.runs import config

import panollava
from panollava.component import component_names
from panollava.config.command_line import CONF, short_names
from panollava.run.config_check import checked
from panollava.run.sections import check_crop, check_tracking

FILES = sorted(Path(CONF).rglob("*.yaml"))
COMMANDS = {
    file.stem
    for file in Path(panollava.__file__).parent.glob("*.py")
    if '__name__ == "__main__"' in file.read_text("utf-8") and file.stem != "__main__"
}
INCLUDED = {"data/augment", "fetch", "generation/recorded", "stage/settings"}
"""Groups that only roots and other options of their group include."""
ADDED = {"debug", "experiment"}
"""Groups outside the defaults list: chosen with ``+group=option``."""
OPTIONS = sorted(
    (str(file.parent.relative_to(CONF)).replace("\\", "/"), file.stem)
    for file in FILES
    if file.parent != Path(CONF) and str(file.parent.relative_to(CONF)).replace("\\", "/") not in INCLUDED
)
COMPONENTS = {
    "model/resampler": ("model.resampler", "Resampler"),
    "model/projector": ("model.projector", "Projector"),
    "model/position": ("model.position", "Position"),
    "crop": ("crop.strategies", "Crop"),
    "objective": ("losses.objective", "Objective"),
}
PLACES = {"objective": "stage.vision.loss"}
"""Groups whose options stand in another place of the config than their names say."""


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_binds(group: str, option: str) -> None:
    plus = "+" if group.partition("/")[0] in ADDED else ""
    cfg = checked(config(f"{plus}{group}={option}"))
    assert OmegaConf.is_readonly(cfg)
    if group in COMPONENTS:
        assert OmegaConf.select(cfg, PLACES.get(group, group.replace("/", "."))).type == option


@pytest.mark.parametrize("bundle", sorted(path.stem for path in (Path(CONF) / "model").glob("*.yaml")))
@pytest.mark.parametrize("resampler", sorted(path.stem for path in (Path(CONF) / "model" / "resampler").glob("*.yaml")))
def test_every_bundle_takes_every_resampler(bundle: str, resampler: str) -> None:
    cfg = checked(config(f"model={bundle}", f"resampler={resampler}"))
    assert cfg.model.resampler.type == resampler
    assert cfg.model.size == ("tiny" if bundle == "tiny" else "full")


@pytest.mark.parametrize("group", COMPONENTS)
def test_every_component_has_its_option(group: str) -> None:
    family, suffix = COMPONENTS[group]
    options = {option for at, option in OPTIONS if at == group} - {"auto"}  # which chooses among the others
    assert options == set(component_names(family, suffix))


def test_every_command_has_its_file() -> None:
    assert {file.stem for file in FILES if file.parent == Path(CONF)} == COMMANDS
    assert {"train", "eval", "fetch"} < COMMANDS
    for option in ("mlflow", "none"):
        tracking = OmegaConf.to_container(config("checkpoint=runs/x", f"tracking={option}", root="eval").tracking)
        assert isinstance(tracking, dict)
        assert check_tracking({str(key): value for key, value in tracking.items()}) == []


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "crop"])
def test_the_gallery_takes_every_crop(option: str) -> None:
    section = OmegaConf.to_container(config(f"crop={option}", root="gallery").crop)
    assert isinstance(section, dict)
    assert section["type"] == option
    assert check_crop({str(key): value for key, value in section.items()}) == []


def test_short_names_are_the_groups_below_model_and_hide_no_key() -> None:
    names = short_names()
    assert set(names) >= {"vision", "resampler", "position", "projector", "language", "lora"}
    assert not set(names) & set(config())
    for short, group in names.items():
        option = next(option for at, option in OPTIONS if at == group)
        assert config(f"{short}={option}") == config(f"{group}={option}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_every_file_opens_with_what_it_is(file: Path) -> None:
    first = next(line for line in file.read_text("utf-8").splitlines() if not line.startswith("# @package"))
    assert first.startswith("# ")
    assert len(first) >= 10


def test_real_backbones_have_their_published_numbers() -> None:
    cfg = config("model=siglip_qwen")
    assert (cfg.model.vision.name, cfg.model.language.name) == ("google/siglip-base-patch16-224", "Qwen/Qwen2.5-0.5B")
    assert (cfg.model.resampler.type, cfg.model.latent_width) == ("mlp", 768)
    stages = [cfg.stage[name] for name in ("vision", "resampler", "finetune")]
    assert [stage.epochs for stage in stages] == [3, 5, 10]
    assert [stage.batch_size for stage in stages] == [32, 16, 8]
    assert [stage.lr for stage in stages] == [5e-6, 2e-5, 1e-5]
    assert [stage.max_text_length for stage in stages] == [32, 64, 128]
    assert (cfg.model.lora.rank, cfg.model.lora.alpha, cfg.model.lora.dropout) == (16, 32, 0.1)
