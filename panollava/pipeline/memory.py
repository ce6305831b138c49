"""When memory runs out: a smaller batch with the same objective, or the message that names what to lower."""

from __future__ import annotations

from dataclasses import replace

import torch

from panollava.assemble.run import Run
from panollava.checkpoint import LAST, follow
from panollava.logs import LOG
from panollava.training.options import StageOptions


def smaller(run: Run, name: str, options: StageOptions, error: BaseException) -> StageOptions:
    """Half the batch and twice the accumulation, or the message that says so."""
    half = replace(options, batch_size=options.batch_size // 2, accumulate=options.accumulate * 2)
    started = follow(run.experiment.stage_folder(name) / LAST) is not None
    if run.trainer.auto_batch and options.batch_size > 1 and not started:
        torch.cuda.empty_cache()
        LOG.warning("Out of memory at batch size %d: trying %d.", options.batch_size, half.batch_size)
        return half
    advice = (
        f"stage.{name}.batch_size={half.batch_size} stage.{name}.accumulate={half.accumulate} keeps the objective"
        if options.batch_size > 1
        else "the batch is 1 already"
    )
    raise ValueError(
        f"Out of memory in stage {name} with stage.{name}.batch_size={options.batch_size}: {advice}; "
        f"trainer.checkpoint_activations=true, a smaller stage.{name}.max_text_length "
        f"({options.max_text_length}) or crop.overlap=0 need less; trainer.auto_batch=true finds a batch that fits."
    ) from error
