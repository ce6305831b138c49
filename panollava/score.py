"""python -m panollava.score <predictions.csv>: scores a file of predictions without a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from panollava.checkpoint import write_json
from panollava.config.check import check_section
from panollava.config.entrypoint import entrypoint
from panollava.evaluation.read_predictions import Form, read_predictions
from panollava.evaluation.scores import score
from panollava.evaluation.words import choose_words
from panollava.logs import LOG, configure_console


@dataclass(frozen=True)
class ScoreOptions:
    """Keys of ``conf/score.yaml``; see there."""

    predictions: str
    form: Form
    words: Literal["auto", "ptb", "unicode"]
    meteor: bool
    out: str | None


@entrypoint("score", bare="predictions")
def main(cfg: DictConfig) -> None:
    """Scores one file.

    Args:
        cfg: composed from ``conf/score.yaml`` and the command line.
    """
    configure_console()
    options = _checked(cfg)
    path = Path(options.predictions).expanduser()
    out = Path(options.out).expanduser() if options.out else path.with_name(f"{path.stem}_scores.json")
    words = choose_words(options.words)
    report = score(read_predictions(path, options.form), form=options.form, words=words, meteor=options.meteor)
    LOG.info("%s: %d answers, %d questions, %d pictures", path, report.answers, report.pairs, report.images)
    LOG.info("Form: %s. Words: %s.\n\n%s\n", report.form, report.words, report.table())
    write_json(out, {"predictions": str(path), **report.record()})
    LOG.info("Scores: %s", out)


def _checked(cfg: DictConfig) -> ScoreOptions:
    if OmegaConf.is_missing(cfg, "predictions"):
        raise ValueError("predictions is missing: name a CSV file, such as python -m panollava.score predictions.csv.")
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    problems = check_section(values, ScoreOptions, "")
    if problems:
        raise ValueError("\n  ".join(["the config is not right:", *problems]))
    return ScoreOptions(**values)


if __name__ == "__main__":
    main()
