"""Builds a stage, and loads its initial weights: of an earlier stage, a named run, or the newest that fits."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from panollava.checkpoint import (
    BEST,
    STANDS_ON,
    base_of,
    find_checkpoint,
    follow,
    keep_base,
    read_state,
    read_weights,
    stands_on,
)
from panollava.data.source import PlacesSource
from panollava.logs import LOG
from panollava.model.backbones import VISION
from panollava.model.lora import add_lora, has_lora, lora_arguments
from panollava.model.trainable import ENCODER, LANGUAGE_MODEL, is_backbone, refuse_buffers
from panollava.run.conditions import FINISHED, differences, recorded_config, recorded_inputs
from panollava.run.run import Run, changed_inputs, named_checkpoint, plain, resume_path
from panollava.run_folder import (
    METADATA,
    described,
    differing_keys,
    find_trained,
    known_checkpoints,
    read_metadata,
    recorded_metadata,
)
from panollava.stages.protocol import Stage, StageSetup
from panollava.stages.registry import FIRST, last_first
from panollava.training.checkpointer import MISFIT, transfer
from panollava.training.parallel import copy_into


def build_stage(run: Run, name: str, *, announce: bool = True) -> Stage:
    """The stage ``name`` around the run's backbones, with new components initialised from the seed.

    Args:
        announce: whether to log its notes.

    Raises:
        ValueError: the stage has persistent buffers of its own.
    """
    record, options, backbones = run.stages[name], run.stage_options(name), run.backbones
    encoder: nn.Module = backbones.tower.model
    encoder.to(backbones.dtype)  # an earlier stage of this run may have trained it, in fp32
    model: Any = backbones.composite() if record.answers else backbones.vision()
    lora = plain(run.cfg.model.lora)
    if lora["enabled"] and record.trains_language and not has_lora(model):
        with backbones.new_weights:
            add_lora(model, **lora_arguments(lora), seed=run.cfg.seed)
    blocks = options.vision_trainable_blocks, options.language_trainable_blocks
    classes = run.data.train.class_names if isinstance(run.data.train, PlacesSource) else ()
    setup = StageSetup(
        name,
        *blocks,
        run.trainer.checkpoint_activations,
        classes=tuple(classes),
        cameras=backbones.crop.camera_rows,
        is_fresh=record.finds and base_checkpoint(run, name) is None,
    )
    own = record.stage_class.own_options(plain(run.cfg.stage[name]))
    stage: Stage = record.stage_class.build(backbones, model, setup, **own)
    refuse_buffers(stage, f"stage.{name}", constants=True)
    if announce:
        for line in stage.notes(options.batch_size, options.accumulate, run.procs.world_size):
            LOG.info("%s", line)
    run.parameters.update({f"stage.{name}.{key}": value for key, value in stage.chosen.items()})
    return stage


def base_checkpoint(run: Run, name: str) -> Path | None:
    """The checkpoint whose weights a stage starts from, or on which the one that it resumes stands; None for none."""
    resume = run.resume_point(name)
    return run.agreed_path(_source(run, name) if resume is None else base_of(resume))


def is_left_out(run: Run, name: str) -> bool:
    """Whether a stage has nothing to learn from this model and crop; the reason is logged.

    Raises:
        ValueError: it is the only stage; or it has something to learn, but not with its options.
    """
    stage: type[Stage] = run.stages[name].stage_class
    reason = stage.skip_reason(run.backbones, stage.own_options(plain(run.cfg.stage[name])))
    if reason and len(run.cfg.stage.run) == 1:
        raise ValueError(f"stage={name} cannot run: {reason}. Choose another crop or resampler, or other stages.")
    if reason:
        LOG.info("Stage %s is left out: %s.", name, reason)
    return bool(reason)


PREFIXES = {"vision": ENCODER, "language": LANGUAGE_MODEL}
"""Prefixes of the names of each backbone's weights."""


def trained_backbones(names: Iterable[str]) -> list[str]:
    """Which of ``vision`` and ``language`` a checkpoint trained, from the names of its tensors.

    Stored features of the named encoder are not valid for a trained one.
    """
    held = [name for name in names if is_backbone(name)]
    return [part for part, prefix in PREFIXES.items() if any(name.startswith(prefix) for name in held)]


def check_backbones(
    run: Run, name: str, source: Path, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Refuses a checkpoint that trained another encoder or language model than this run's.

    Raises:
        ValueError: a trained backbone has another name or other shapes, or ``lora.save_only`` would lose it.
    """
    recorded = read_metadata(source.parent)["model"] if (source.parent / METADATA).is_file() else {}
    for part in trained_backbones(tensors):
        if part not in run.stages[name].backbones:
            continue
        own = [key for key in tensors if key.startswith(PREFIXES[part]) and is_backbone(key)]
        strange = [key for key in own if key not in parameters or parameters[key].shape != tensors[key].shape]
        named = run.cfg.model[part].name
        other = recorded.get(part, {}).get("name", named)
        if strange or other != named:
            raise ValueError(
                f"init_from={source} trained its own {part} backbone, from {other}, and this run names {named}"
                f"{' (' + strange[0] + ' has no place in it)' if strange else ''}. Use {part}.name={other}, or a "
                "checkpoint that left it frozen, or init_from=none."
            )
        if part == "language" and run.cfg.model.lora.save_only:
            raise ValueError(
                f"init_from={source} trained weights of the language model, which lora.save_only=true would not save. "
                "Set it to false, or start from another checkpoint."
            )


AUTO, NONE, NEWEST = "auto", "none", "newest"
"""Values of ``init_from`` that are not a folder."""


def check_start(run: Run, name: str) -> None:
    """Checks the checkpoint that a stage would start from or resume, without reading its tensors.

    Raises:
        FileNotFoundError: ``init_from`` or ``resume`` names no checkpoint.
        ValueError: it is not one of ours.
    """
    if name == run.pending[0] and resume_path(run.cfg) is not None and name not in run.experiment.replaced:
        _check_resume(run)
    if (resume := run.resume_point(name)) is not None:
        read_state(resume)
        return
    if not set(run.stages[name].starts_from) & set(run.pending) and (source := _source(run, name)) is not None:
        read_state(source)


def _check_resume(run: Run) -> None:
    """Refuses a ``resume=<path>`` that is no checkpoint of a pending stage of this run."""
    checkpoint = named_checkpoint(run.cfg)
    stage = read_state(checkpoint)["stage"]
    if stage not in run.pending:
        raise ValueError(
            f"resume={checkpoint} is a checkpoint of stage {stage!r}, not {', '.join(map(repr, run.pending))}, which "
            f"is to be trained. To start from its weights use init_from={checkpoint}."
        )
    recorded = recorded_config(checkpoint.parent)
    metadata = recorded_metadata(checkpoint.parent)
    if different := differing_keys(stage, run.plain, recorded, metadata) if recorded else {}:
        shown = "; ".join(described(key, *values) for key, values in different.items())
        raise ValueError(
            f"resume={checkpoint} is of a run with another config ({shown}), and resuming continues the very same "
            f"run. Give the same values, or start from its weights with init_from={checkpoint}."
        )
    way_out = f"or start from its weights with init_from={checkpoint}"
    if problem := changed_inputs(run, stage, checkpoint.parent, way_out):
        raise ValueError(problem)


def borrow(run: Run, name: str, stage: Stage, resume: Path | None) -> dict[str, str]:
    """Loads the weights that a stage does not train from the checkpoint that it stands on, and keeps a copy of that.

    Args:
        resume: the stage's own checkpoint that it resumes.

    Returns:
        The entry of its checkpoints that names the other one.

    Raises:
        ValueError: the checkpoint is of another encoder, or has no resampler of this kind and size.
    """
    base = base_checkpoint(run, name)
    assert base is not None
    vision = stage.vision
    own = {f"{VISION}{key}": weight for key, weight in vision.named_parameters()}
    tensors = {key: tensor for key, tensor in read_weights(base).items() if key.startswith(VISION)}
    check_backbones(run, name, base, tensors, own)
    lacking = [
        key
        for key, weight in own.items()
        if not is_backbone(key) and (key not in tensors or tensors[key].shape != weight.shape)
    ]
    if lacking:
        raise ValueError(
            f"init_from={base} has no weights of this resampler ({lacking[0]}). Use a run of the same resampler and "
            "sizes, or init_from=none, with which the resampler trains too."
        )
    for key, tensor in tensors.items():
        copy_into(own[key], tensor)
    LOG.info("Stage %s stands on the weights of %s.", name, base)
    entry: dict[str, str] = stands_on(base, run.experiment.root) if resume is None else read_state(resume)[STANDS_ON]
    if run.procs.is_main:
        keep_base(base, run.experiment.stage_folder(name))
    return entry


def start_from(
    run: Run, name: str, trained: dict[str, nn.Parameter], frozen: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Loads initial weights: all that fit, of the checkpoint that ``init_from`` names.

    Args:
        trained: parameters of the stage that train, by name.
        frozen: those of its backbones that do not.

    Returns:
        Weights of the frozen backbones that an earlier stage has trained; they are not loaded here.

    Raises:
        ValueError: nothing fits, or the checkpoint trained another backbone than this run's.
    """
    source = run.agreed_path(_source(run, name))
    if source is None:
        if run.stages[name].starts_from:
            LOG.info(
                "Stage %s starts fresh: %s has no finished earlier stage (init_from=<folder> starts from another run).",
                name, run.experiment.root,
            )  # fmt: skip
        return {}
    tensors = read_weights(source)
    if run.procs.is_main:
        own = {part: run.inputs(name).get(part) for part in PREFIXES}
        if changed := differences(recorded_inputs(source.parent), own):
            LOG.warning(
                "%s was trained on backbones of other content than this run's (%s).", source, ", ".join(changed)
            )
    check_backbones(run, name, source, tensors, {**frozen, **trained})
    inherited = {key: tensors[key] for key in tensors.keys() & frozen.keys()}
    report = transfer(tensors, trained, kept=inherited)
    LOG.info("%s", report.summary(source))
    if details := report.details():
        LOG.debug("%s", details)  # hundreds of names: for the log file alone
    if not report.loaded:
        misfits = report.not_loaded.get(MISFIT, [])
        raise ValueError(
            f"init_from={source}: none of its {len(tensors)} tensors fits this model"
            f"{' (' + '; '.join(misfits[:3]) + ')' if misfits else ''}. "
            f"{FIRST.capitalize()} checkpoints below {run.cfg.output_dir}: {_listed(run)}. Use one of the same "
            "resampler and sizes, or init_from=none."
        )
    if run.procs.is_main:
        run.experiment.record(name, started_from=str(source))
    return inherited


def _source(run: Run, name: str) -> Path | None:
    """Checkpoint folder to start from: the named one, or that of a stage of the same experiment."""
    earlier = run.stages[name].starts_from
    init_from = run.cfg.init_from if _is_first(run, name) else AUTO
    if init_from == NONE:
        return None
    if init_from == NEWEST:
        return _newest(run)
    if init_from != AUTO:
        path = Path(init_from).expanduser()
        if not path.exists():
            raise ValueError(
                f"init_from={path} does not exist. Give auto, none, newest, or a run's folder. "
                f"{FIRST.capitalize()} checkpoints below {run.cfg.output_dir}: {_listed(run)}."
            )
        # Of an experiment's stages those that this one may start from come first.
        order = [*earlier, *(stage for stage in last_first(run.stages.values()) if stage not in earlier)]
        return find_trained(path, order)[1]
    for previous in earlier:
        folder = run.experiment.stage_folder(previous)
        if run.experiment.state(previous).get("status") != FINISHED:
            continue
        if follow(folder / BEST) is None:
            raise ValueError(
                f"Stage {previous} is finished, and its checkpoints in {folder} are gone, so stage {name} cannot start "
                f"from them. Restore them, train it anew (stage={previous} overwrite=true), or start from another run "
                f"or new weights (stage={name} init_from=<folder> or init_from=none)."
            )
        return find_checkpoint(folder)
    return None


def _newest(run: Run) -> Path:
    """The newest checkpoint of a first stage with this encoder and this resampler, of any crop."""
    model = run.cfg.model
    for folder in known_checkpoints(Path(run.cfg.output_dir), FIRST):
        recorded: dict[str, Any] = read_metadata(folder)["model_config"]
        if (recorded["vision_name"], recorded["resampler_type"]) == (model.vision.name, model.resampler.type):
            return find_checkpoint(folder)
    raise ValueError(
        f"init_from=newest: no {FIRST} stage below {run.cfg.output_dir} has vision.name={model.vision.name} and "
        f"resampler={model.resampler.type}. {FIRST.capitalize()} checkpoints there: {_listed(run)}. Train one, python "
        f"-m panollava.train stage={FIRST} resampler={model.resampler.type}, or name a run, init_from=<folder>."
    )


def _is_first(run: Run, name: str) -> bool:
    """Whether the run trains no stage that this one may start from."""
    return not any(stage in run.cfg.stage.run for stage in run.stages[name].starts_from)


def _listed(run: Run) -> str:
    return ", ".join(map(str, known_checkpoints(Path(run.cfg.output_dir), FIRST)[:5])) or "none"
