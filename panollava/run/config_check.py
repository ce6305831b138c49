"""The strict check of a composed config, section by section, against the components it configures."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

from annotated_types import Interval, MinLen
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panollava.component import allow, closest, component_names, outside_packages
from panollava.config.check import check_component, check_section, error_lines
from panollava.crop.crop import Crop
from panollava.crop.render import check_workers
from panollava.data.scenes.questions import BOX
from panollava.evaluation.measure import AUTO, check_measure
from panollava.evaluation.metrics import check_metrics
from panollava.model.components import component_class, keeps_width
from panollava.model.fusion import Join, check_join, crop_misfits
from panollava.model.hub import WITHOUT_BOXES, load_language_model
from panollava.model.lora import add_lora, lora_arguments
from panollava.model.vision import VisionTower
from panollava.prompt import ChatPrompt
from panollava.run.sections import check_crop, check_generation, check_tracking
from panollava.run.sources import check_data
from panollava.stages import vision as vision_stage
from panollava.stages.registry import StageRecord, in_order, stages_of, with_defaults
from panollava.store.catalogue import StoreOptions
from panollava.training.options import OptimOptions, StageOptions, TrainerOptions

Gpu = Literal["a100-40", "a100-80", "h100", "h200", "rtx4090", "l4"]
"""GPUs that a plan can be made for; see ``panollava.run.plan``."""
SECTIONS = ("crop", "data", "evaluation", "generation", "model", "optim", "stage", "store", "tracking", "trainer")


@dataclass(frozen=True)
class RootOptions:
    """Plain keys of ``conf/train.yaml``."""

    experiment_name: str | None
    output_dir: Annotated[str, MinLen(1)]
    init_from: Annotated[str, MinLen(1)]
    resume: Annotated[str, MinLen(1)]
    overwrite: bool
    dry_run: Literal[False, True, "plan"]
    gpu: Gpu | None
    mfu: Annotated[float, Interval(gt=0, le=1)]
    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    form: Literal[4]


@dataclass(frozen=True)
class ModelOptions:
    """Plain keys of ``model``."""

    size: str
    latent_width: Annotated[int, Interval(ge=1)]
    join: Join
    tokens_per_side: Annotated[int, Interval(ge=1, le=64)] | None = None


@dataclass(frozen=True)
class EvaluationOptions:
    """``evaluation.*``; see ``conf/evaluation``."""

    enabled: bool
    batch_size: Annotated[int, Interval(ge=1)]
    max_samples: Annotated[int, Interval(ge=1)] | None
    blank: bool
    words: Literal["auto", "ptb", "unicode"]
    meteor: bool
    results_dir: str
    log_samples: bool
    log_interval: Annotated[int, Interval(ge=1)]
    log_max_samples: Annotated[int, Interval(ge=0)]
    clip: str | None = None
    metrics: list[str] | None = None
    measure: str = AUTO


def checked(cfg: DictConfig) -> DictConfig:
    """The config, resolved and read-only, if every key, type and range is right.

    Raises:
        ValueError: a line for each problem, with the full key, the value and what is allowed.
    """
    try:
        values: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"The config does not resolve: {error}") from error
    allow(outside_packages(values))  # training may import what the user's own config names
    problems = [f"{key} is missing; it has no default." for key in sorted(OmegaConf.missing_keys(cfg))]
    if not problems and isinstance(values.get("stage"), dict):
        try:
            values["stage"] = with_defaults(values["stage"])
        except ValueError as error:
            problems.append(str(error))
    problems = problems or _problems(values)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:"
        raise ValueError("\n  ".join([f"the config has {count}", *problems]))
    result = OmegaConf.create(values)
    OmegaConf.set_readonly(result, True)
    return result


def _problems(values: dict[str, Any]) -> list[str]:
    plain = {key: value for key, value in values.items() if key not in SECTIONS}
    problems = check_section(plain, RootOptions, "")
    if plain.get("gpu") is not None and not plain.get("dry_run"):
        problems.append(
            f"gpu={plain['gpu']} says for which GPU a dry run plans, and this is none: add dry_run=plan, or leave it "
            "out. trainer.device says where a run trains."
        )
    missing = [key for key in SECTIONS if not isinstance(values.get(key), dict)]
    if missing:
        return problems + [f"{key} is missing: choose an option, see --help." for key in missing]
    return problems + check_inputs(values) + _boxes(values) + _stage(values) + _rest(values)


def check_inputs(values: dict[str, Any]) -> list[str]:
    """Problems of the sections that determine the model's inputs: data, crop, model, trainer and store."""
    problems = check_crop(values["crop"]) or _join(values) + _panoramas(values)
    problems += _model(values) + check_data(values["data"])
    problems += check_section(values["trainer"], TrainerOptions, "trainer")
    return problems + check_section(values["store"], StoreOptions, "store")


def _join(values: dict[str, Any]) -> list[str]:
    """Whether views of this crop can be joined as ``model.join`` says; their size does not matter."""
    join = values["model"].get("join")
    if problems := crop_misfits(values["crop"], values["model"]):
        return problems
    if join not in get_args(Join):
        return []  # reported with the model's other keys
    side = values["crop"].get("view_size") or 1
    return error_lines(lambda: check_join(Crop.from_spec(values["crop"], view_size=(side, side)).camera_rows, join))


def _panoramas(values: dict[str, Any]) -> list[str]:
    """Whether the loader's workers can render on the crop's device, and whether the pictures can be partial."""
    crop, data, workers = values["crop"], values["data"], values["trainer"].get("num_workers")
    problems = error_lines(check_workers, crop.get("device", "cpu"), workers if isinstance(workers, int) else 0)
    problems = [line.replace("num_workers", "trainer.num_workers") for line in problems]
    covered = crop.get("panorama_fov_deg")
    if covered is not None and data.get("type") == "world":
        problems.append(
            "crop.panorama_fov_deg is for pictures that cover a part of the sphere, and those of data=world are drawn "
            "whole. Leave it at null, or choose data=csv."
        )
    if data.get("augment") is True and data.get("augment_turn") is True and covered and covered[0] < 360:
        problems.append(
            f"data.augment_turn=true: pictures of {covered[0]:g} of 360 degrees (crop.panorama_fov_deg) have no seam "
            "to be turned around. Set data.augment_turn=false; colours may still change."
        )
    return problems


def _boxes(values: dict[str, Any]) -> list[str]:
    """Whether the language model has read the words of a box, if questions are about boxes."""
    kinds, name = values["data"].get("kinds"), values["model"]["language"].get("name")
    if values["data"].get("type") != "world" or BOX not in (kinds or ()) or name != WITHOUT_BOXES:
        return []
    return [
        f"data.kinds={kinds}: answers to {BOX} are boxes in words, and model.language.name={name} has never read "
        "numbers. Use language=tiny_boxes, or leave box out."
    ]


def _model(values: dict[str, Any]) -> list[str]:
    model = dict(values["model"])
    problems = _position_width(model)
    given: tuple[str, ...]
    for part in ("resampler", "projector", "position"):
        given = ("input_width", "output_width") if part != "position" else ("width",)
        problems += check_component(model.pop(part), f"model.{part}", partial(component_class, part), given=given)
    vision = {"name_or_path" if key == "name" else key: value for key, value in model.pop("vision").items()}
    given = ("image_size", "kept_size", "dtype")
    problems += check_section(vision, VisionTower.from_pretrained, "model.vision", given=given)
    language = dict(model.pop("language"))
    system = {"system": language.pop("system")} if "system" in language else {}
    problems += check_section(system, ChatPrompt, "model.language", given=("tokenizer",))
    problems += check_section(language, load_language_model, "model.language", given=("dtype",))
    lora = dict(model.pop("lora"))
    problems += [
        f"model.lora.{name}={lora.get(name)!r}: allowed is true or false."
        for name in ("enabled", "save_only")
        if not isinstance(lora.get(name), bool)
    ]
    problems += check_section(lora_arguments(lora), add_lora, "model.lora", given=("model", "seed"))
    return problems + check_section(model, ModelOptions, "model")


def _position_width(model: dict[str, Any]) -> list[str]:
    """Whether the position code fits into the tokens: stage 1, which does not use it, would not notice."""
    spec, width = dict(model["position"]), model.get("latent_width")
    if check_component(spec, "model.position", partial(component_class, "position"), given=("width",)):
        return []  # reported by the caller
    with suppress(ValueError):  # reported by the caller
        if keeps_width(component_class("resampler", str(model["resampler"].get("type")))):
            return []  # the tokens have the width of the encoder, which is not opened yet
    if not isinstance(width, int) or width < 1:
        return []
    return error_lines(component_class("position", str(spec.pop("type"))), **spec, width=width)


def _stage(values: dict[str, Any]) -> list[str]:
    section, stages = dict(values["stage"]), stages_of(values["stage"])
    run, order = section.pop("run", None), in_order(stages)
    problems = []
    if not isinstance(run, list) or not run or any(name not in stages for name in run) or len(set(run)) != len(run):
        problems.append(f"stage.run={run!r}: allowed is a list out of {', '.join(order)}.")
    elif run != [name for name in order if name in run]:
        problems.append(f"stage.run={run!r}: the order is {', '.join(order)}.")
    for name, record in stages.items():
        problems += _options(record, dict(section.pop(name, None) or {}))
    for name, record in stages.items():
        if record.trains_language:
            problems += _trainable(values["model"], name, values["stage"].get(name) or {})
    if values["model"]["lora"].get("save_only") and not values["model"]["lora"].get("enabled"):
        problems.append("model.lora.save_only=true saves an adapter, and model.lora.enabled=false has none: leave it.")
    return problems + [
        f"stage.{key} is not a key here. Keys of stage: run, {', '.join(stages)}, and sections with a type "
        "(package.module:Class)."
        for key in section
    ]


def _options(record: StageRecord, options: dict[str, Any]) -> list[str]:
    """Problems of ``stage.<name>``."""
    key, stage = f"stage.{record.name}", record.stage_class
    problems = check_objective(options.pop("loss", None) or {}) if record.has_objective else []
    own = stage.own_options(options)
    if not record.has_objective:
        target, given = stage.takes()
        problems += check_section(own, target, key, given=given)
    lacks = () if record.trains_language else ("language_trainable_blocks",)
    shared = {name: value for name, value in options.items() if name not in {*own, "type"}}
    return problems + check_section(shared, StageOptions, key, given=lacks)


def _trainable(model: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> list[str]:
    """Problems of a stage's trainable blocks with ``model.lora`` and ``model.language``."""
    key, blocks = f"stage.{name}.language_trainable_blocks", options.get("language_trainable_blocks", 0)
    problems = []
    if model["lora"].get("enabled") and blocks == "all":
        problems.append(
            f"{key}=all trains every weight of the language model, beside which an adapter has nothing to add: "
            "use lora=none with it, or a number of blocks."
        )
    if model["lora"].get("save_only") and blocks != 0:
        problems.append(
            f"model.lora.save_only=true saves no weights of the language model, and {key}={blocks} trains some, "
            "which would be lost. Set the one to false or the other to 0."
        )
    if model["language"].get("load_in_4bit") and blocks != 0:
        problems.append(
            f"model.language.load_in_4bit=true holds the language model in four bits, which cannot train: "
            f"{key}={blocks} needs load_in_4bit=false. An adapter can train on it (lora=lora)."
        )
    return problems


def check_objective(section: Mapping[str, Any]) -> list[str]:
    """Problems of ``stage.vision.loss``: each objective has keys of its own, and null is its own default."""
    kind, key = section.get("type"), vision_stage.KEY
    head = {name: value for name, value in section.items() if name == "head_width"}
    rest = {name: value for name, value in section.items() if name not in ("type", "head_width")}
    given = ("vision", "setup", "objective", "settings", "pairing")
    problems = check_section(head, vision_stage.OverlapStage, key, given=given)
    if ":" in str(kind):
        return problems + check_component({"type": kind, **rest}, key, vision_stage.objective_class)
    available = component_names(vision_stage.OBJECTIVES, "Objective")
    allowed = [vision_stage.AUTO, *available]
    if kind not in allowed:
        close = closest(str(kind), allowed)
        hint = f" Did you mean {close}?" if close else ""
        return [f"{key}.type={kind}: there is no such objective.{hint} Available: {', '.join(allowed)}."]
    name = vision_stage.WITH_GRID if kind == vision_stage.AUTO else str(kind)
    own = vision_stage.objective_keys(name)
    others = {key for name in available for key in vision_stage.objective_keys(name)} - own
    strange = {key: value for key, value in rest.items() if key in others and value is not None}
    problems += [vision_stage.not_its_key(key, value, name, str(kind)) for key, value in strange.items()]
    left = {key: value for key, value in rest.items() if key not in others and not (key in own and value is None)}
    return problems + check_section(left, vision_stage.objective_class(name), key)


def _rest(values: dict[str, Any]) -> list[str]:
    problems = check_tracking(values["tracking"])
    last = stages_of(values["stage"]).get((values["stage"].get("run") or [""])[-1])
    if values["tracking"].get("log_model") == "export" and last is not None and not last.answers:
        problems.append(
            "tracking.log_model=export: a stage-1 model has no language part, so transformers could not open it. "
            "Choose checkpoint, or stages that end with resampler or finetune."
        )
    problems += check_section(values["optim"], OptimOptions, "optim")
    problems += check_generation(values["generation"])
    if "max_new_tokens" in values["evaluation"]:  # of an overlay from before there was the group
        return [*problems, "evaluation.max_new_tokens is generation.max_new_tokens in a file: move it there."]
    problems += check_section(values["evaluation"], EvaluationOptions, "evaluation")
    problems += check_measure(values["evaluation"].get("measure"))
    return problems + check_metrics(values["evaluation"].get("metrics"), "evaluation.metrics")
