"""Checks before the first step: everything that can fail is opened; and the picture of a panorama's views."""

from collections.abc import Sequence
from pathlib import Path

from panollava.crop.boxes import PictureBoxes
from panollava.data.dataset import TextEncoder, control_texts, count_cut
from panollava.data.files import ListedSource
from panollava.data.source import DataSource, PlacesSource, spread_indices
from panollava.disk import check_writable, write_file
from panollava.evaluation.clip import clip_config
from panollava.evaluation.drawing import encode_png
from panollava.evaluation.gallery import gallery_picture
from panollava.logs import LOG
from panollava.model.hub import SHIPPED
from panollava.model.lora import check_targets
from panollava.model.shared_prefix import unshareable
from panollava.model.trainable import check_language_blocks
from panollava.prompt import Limits
from panollava.run.build_stage import check_start
from panollava.run.data import check_questions, check_records
from panollava.run.features import forecast
from panollava.run.memory import check_whole
from panollava.run.run import BACKBONES, Run, plain, plans_only
from panollava.run.sources import without_boxes
from panollava.stages.protocol import Stage
from panollava.training.parallel import check_compiler

VIEWS = "views.png"
EXAMINED = 200
"""Training records whose boxes and texts are examined before training."""


def preflight(run: Run) -> None:
    """Opens what the pending stages need and checks that their sequences fit the language model.

    Raises:
        FileNotFoundError: a backbone does not exist.
        DiskError: the results of the evaluation could not be written.
        ValueError: a split is empty, a sequence would be longer than the language model's positions, ``init_from``
            fits nothing, more blocks are to train than there are, or ``trainer.compile`` has no compiler.
    """
    if run.trainer.compile and run.pending and not plans_only(run.cfg):
        check_compiler(run.compute.device.type)
    if run.is_sharded and run.trainer.auto_batch:
        raise ValueError(
            "trainer.auto_batch=true tries batches in each process by itself, and with trainer.parallel=fsdp none can "
            "take a step by itself. Set stage.<name>.batch_size, or use trainer.parallel=ddp."
        )
    for name, source in (("train", run.data.train), ("val", run.data.val)):
        if len(source) == 0:
            raise ValueError(f"The {name} split of {source.name} has no records.")
    pending, test = run.pending, run.data.test
    shipped = [part for part in BACKBONES if run.cfg.model[part].name in SHIPPED]
    if pending and shipped and run.cfg.data.type != "world":
        LOG.warning(
            "The miniature backbones (%s) know only the built-in world, and data=%s are others. Take real ones: "
            "model=siglip_qwen.",
            ", ".join(run.cfg.model[part].name for part in shipped), run.cfg.data.name,
        )  # fmt: skip
    if test is not None and run.stages[run.cfg.stage.run[-1]].answers and not run.cfg.dry_run:
        check_writable(Path(run.cfg.evaluation.results_dir), "evaluation.results_dir")
    language = _open_language(run) if any(run.stages[name].answers for name in pending) else None
    if language is not None:
        for source in run.data.splits.values():
            if isinstance(source, ListedSource) and (found := control_texts(source, run.backbones.prompt)):
                LOG.warning("%s.", found)
    crop, count = run.backbones.crop, run.backbones.image_tokens
    LOG.info("%s, %d image tokens a panorama.", crop.summary, count)
    width, unused = run.backbones.outline.width, run.cfg.model.latent_width
    if width != unused:
        name = run.cfg.model.resampler.type
        LOG.info(
            "resampler=%s keeps the encoder's width of %d: model.latent_width=%d is not used.", name, width, unused
        )
    if features := describe_features(run):
        LOG.info("%s", features)
    for name in pending:
        stage: type[Stage] = run.stages[name].stage_class
        if run.stages[name].finds:
            _check_places(run, name, stage)
        _check_blocks(run, name)
        check_start(run, name)
        targets = run.stages[name].targets
        if targets is not None and language is not None:
            _check_texts(run, name, run.data.text(targets, run.stage_options(name)), language)
    if language and test is not None:
        check_whole(run)
        if run.cfg.evaluation.clip is not None:
            clip_config(run.cfg.evaluation.clip, "evaluation.clip")
        run.measure  # noqa: B018  chosen for its own errors and its line in the log
        new = run.cfg.generation.max_new_tokens
        check_questions(test, run.backbones.prompt, language, image_tokens=count, new_tokens=new)


def _check_places(run: Run, name: str, stage: type[Stage]) -> None:
    """Refuses a stage that finds boxes where model, crop or data do not suit it."""
    own = stage.own_options(plain(run.cfg.stage[name]))
    problem = stage.misfit(run.backbones, *_examined(run.data.train), own)
    for split, source in run.data.splits.items():
        problem = problem or without_boxes(source, run.cfg.evaluation.max_samples if split == "test" else None)
    if problem:
        raise ValueError(f"stage={name} cannot run: {problem}")


def _examined(train: DataSource) -> tuple[Sequence[str], list[PictureBoxes]]:
    """Names of the classes of a split, and the boxes of some pictures; none where it has no boxes."""
    if not isinstance(train, PlacesSource):
        return (), []
    return train.class_names, [train.boxes(index) for index in spread_indices(len(train), EXAMINED)]


def describe_features(run: Run) -> str | None:
    """A sentence about the size of the feature store; None where the pending stages keep no features."""
    if not run.store.enabled or all(run.stage_options(name).vision_trainable_blocks != 0 for name in run.pending):
        return None
    train = None if run.data.augment.is_on else run.data.train  # what is changed at random is never kept
    splits = [split for split in (train, run.data.val, run.data.test) if split is not None]
    return forecast(run.store, run.backbones.tower, run.backbones.crop, splits)


def _check_texts(run: Run, name: str, encoder: TextEncoder, language: Limits) -> None:
    """Checks that a stage's texts fit the language model, and that their limit leaves something to learn."""
    longest, image = run.stage_options(name).max_text_length, encoder.image_tokens
    cut = count_cut(run.data.train, encoder.record, at_most=EXAMINED)
    if cut.silent_samples == cut.samples:
        raise ValueError(
            f"stage.{name}.max_text_length={longest} cuts every examined text before its first answer, so there is "
            "nothing to learn. Raise it."
        )
    if cut.cut_samples:
        LOG.info(
            "stage.%s.max_text_length=%d cuts %d of %d texts examined (%d tokens in all; %d keep no target).",
            name, longest, cut.cut_samples, cut.samples, cut.cut_tokens, cut.silent_samples,
        )  # fmt: skip
    if image + longest > language.positions:
        raise ValueError(
            f"stage {name}: {image} image tokens and up to {longest} text tokens are more than the "
            f"{language.positions} positions of {run.cfg.model.language.name}. Lower stage.{name}.max_text_length "
            "or crop.overlap, or choose a resampler with fewer tokens or a longer language model."
        )
    if run.data.shared_prefix and (problem := unshareable(run.backbones.language, image + longest)):
        raise ValueError(f"stage {name}, data.shared_prefix=true: {problem}, or set data.shared_prefix=false.")
    for source in (run.data.train, run.data.val):
        check_records(source, encoder, language)


def _check_blocks(run: Run, name: str) -> None:
    """Checks that the backbones have the blocks that a stage is to train, before an earlier stage has trained."""
    options = run.stage_options(name)
    try:
        run.backbones.tower.check_blocks(options.vision_trainable_blocks)
        if options.language_trainable_blocks != 0:
            count = len(run.backbones.language.get_decoder().layers)
            check_language_blocks(options.language_trainable_blocks, count)
    except ValueError as error:
        raise ValueError(f"stage.{name}.{error}") from error


def _open_language(run: Run) -> Limits:
    """Opens tokenizer and language model, so that a damaged folder ends the run before stage 1 has trained."""
    run.backbones.prompt  # noqa: B018  opened for its own errors
    model = run.backbones.language
    lora = plain(run.cfg.model.lora)
    adapts = lora["enabled"] and any(run.stages[name].trains_language for name in run.pending)
    if adapts and lora["target_modules"] != "all-linear":
        check_targets(model, lora["target_modules"])
    return Limits.of(model)


def show_views(run: Run) -> None:
    """Tracks a picture of the views of one panorama, and keeps it in the experiment's folder."""
    if not run.procs.is_main or not run.pending or run.cfg.dry_run:
        return
    panorama, crop = run.data.train.panorama(0), run.backbones.crop
    title = f"{run.cfg.crop.type}: {crop.summary}"
    path = run.experiment.root / VIEWS
    shown = gallery_picture(panorama, crop.views(panorama), crop.cameras_of(panorama), title=title)
    write_file(path, encode_png(shown))
    run.tracker.image(path, VIEWS)
