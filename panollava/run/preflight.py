"""One perspective view of a panorama file, for people to look at."""

from __future__ import annotations

from pathlib import Path

from panollava.disk import check_writable
from panollava.evaluation.clip import clip_config
from panollava.logs import LOG
from panollava.model.lora import check_targets
from panollava.model.trainable import check_language_blocks
from panollava.prompt import Limits
from panollava.run.build_stage import check_start
from panollava.run.data import check_questions
from panollava.run.features import forecast
from panollava.run.run import Run, plain
from panollava.training.parallel import check_compiler


def preflight(run: Run) -> None:
    """Opens what the pending stages need and checks that their sequences fit the language model.

    Raises:
        FileNotFoundError: a backbone does not exist.
        DiskError: the results of the evaluation could not be written.
        ValueError: a sequence would be longer than the language model's positions, ``init_from`` fits nothing, more
            blocks are to train than there are, or ``trainer.compile`` has no compiler.
    """
    if run.trainer.compile and run.pending:
        check_compiler(run.compute.device.type)
    if run.is_sharded and run.trainer.auto_batch:
        raise ValueError(
            "trainer.auto_batch=true tries batches in each process by itself, and with trainer.parallel=fsdp none can "
            "take a step by itself. Set stage.<name>.batch_size, or use trainer.parallel=ddp."
        )
    pending = run.pending
    if run.data.test is not None and run.stages[run.cfg.stage.run[-1]].answers and not run.cfg.dry_run:
        check_writable(Path(run.cfg.evaluation.results_dir), "evaluation.results_dir")
    needs_language = any(run.stages[name].answers for name in pending)
    language = _open_language(run, pending) if needs_language else None
    if language is not None:
        run.data.tell_control_tokens()
    crop, count = run.backbones.crop, run.backbones.image_tokens
    LOG.info("%s, %d image tokens a panorama.", crop.summary, count)
    width, asked = run.backbones.outline.width, run.cfg.model.latent_width
    if width != asked:
        name = run.cfg.model.resampler.type
        LOG.info("resampler=%s keeps the encoder's width of %d: model.latent_width=%d is not used.", name, width, asked)
    if run.store.enabled and any(run.stage_options(name).vision_trainable_blocks == 0 for name in pending):
        trains = None if run.data.augment.is_on else run.data.train  # what is changed at random is never kept
        splits = [split for split in (trains, run.data.val, run.data.test) if split is not None]
        LOG.info("%s", forecast(run.store, run.backbones.tower, crop, splits))
    for name in pending:
        _check_blocks(run, name)
        check_start(run, name)
        targets = run.stages[name].targets
        if targets is None or language is None:
            continue
        options = run.stage_options(name)
        run.data.check_text(name, targets, options)
        if count + options.max_text_length > language.positions:
            raise ValueError(
                f"stage {name}: {count} image tokens and up to {options.max_text_length} text tokens are more than the "
                f"{language.positions} positions of {run.cfg.model.language.name}. Lower stage.{name}.max_text_length "
                "or crop.overlap, or choose a resampler with fewer tokens or a longer language model."
            )
        run.data.check_tokens(targets, options, language)
    if language and run.data.test is not None and run.cfg.evaluation.clip is not None:
        clip_config(run.cfg.evaluation.clip, "evaluation.clip")
    if language and run.data.test is not None:
        new = run.cfg.generation.max_new_tokens
        check_questions(run.data.test, run.backbones.prompt, language, image_tokens=count, new_tokens=new)


def _check_blocks(run: Run, name: str) -> None:
    """Whether the backbones have the blocks that a stage is to train; alone it would find out when its turn comes."""
    options = run.stage_options(name)
    try:
        run.backbones.tower.check_blocks(options.vision_trainable_blocks)
        if options.language_trainable_blocks != 0:
            count = len(run.backbones.language.get_decoder().layers)
            check_language_blocks(options.language_trainable_blocks, count)
    except ValueError as error:
        raise ValueError(f"stage.{name}.{error}") from error


def _open_language(run: Run, pending: list[str]) -> Limits:
    """Opens tokenizer and language model, which a damaged folder would otherwise end after stage 1 has trained.

    Returns:
        What the model can be given.
    """
    run.backbones.prompt  # noqa: B018  opened for its own errors
    model = run.backbones.language
    lora = plain(run.cfg.model.lora)
    adapts = lora["enabled"] and any(run.stages[name].trains_language for name in pending)
    if adapts and lora["target_modules"] != "all-linear":
        check_targets(model, lora["target_modules"])
    return Limits.of(model)
