"""python -m panollava.score <predictions.csv>: scores answers, also to a benchmark, or detections, without a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf

from panollava.config.check import error_lines
from panollava.config.command_line import CONF
from panollava.config.entrypoint import entrypoint
from panollava.disk import read_document, write_json
from panollava.logs import LOG, counted
from panollava.run.options import OF_CAPTIONS, BenchmarkName

if TYPE_CHECKING:
    from panollava.evaluation.metrics import AnswerSet


@dataclass(frozen=True)
class ScoreOptions:
    """Keys of ``conf/score.yaml``; see there."""

    predictions: str
    form: Literal["grouped", "single"]
    image_column: str | None
    query_column: str | None
    prediction_column: str | None
    reference_column: str | None
    words: Literal["auto", "ptb", "unicode"]
    meteor: bool
    clip: str | None
    metrics: list[str] | None
    score_by: list[str] | None
    images: str | None
    device: str
    truth: str | None
    boxes: str | list[str] | None
    detection_boxes: str | list[str] | None
    least_score: float | None
    benchmark: BenchmarkName | None
    benchmark_files: str | None
    out: str | None


OF_BOXES = ("boxes", "detection_boxes", "least_score")
"""Keys of detections."""
OF_BOTH = ("predictions", "truth", "benchmark", "out")
"""Keys of answers and of detections; all others are of answers."""
OF_BENCHMARK = ("image_column", "query_column", "prediction_column", "images", "benchmark_files")
"""Keys of answers to a public benchmark, beside ``OF_BOTH`` without ``truth``."""


@entrypoint("score", positional=("predictions",))
def main(cfg: DictConfig) -> None:
    """Scores one file."""
    from panollava.run.sections import read_config

    example = "name a CSV file, such as python -m panollava.score predictions.csv"
    options, _ = read_config(cfg, ScoreOptions, required=["predictions"], example=example, check=_problems)
    path = Path(options.predictions).expanduser()
    out = Path(options.out).expanduser() if options.out else path.with_name(f"{path.stem}_scores.json")
    truth = None if options.truth is None else Path(options.truth).expanduser()
    files = None if options.benchmark_files is None else Path(options.benchmark_files).expanduser()
    for key, given in (("predictions", path), ("truth", truth), ("benchmark_files", files)):
        if given is not None and given.exists() and out.exists() and out.samefile(given):
            raise ValueError(f"out={out} is the file of {key}, which would be lost. Choose another name.")
    if options.benchmark is not None:
        _score_benchmark(path, out, options)
    elif truth is None:
        _score_answers(path, out, options)
    else:
        _score_detections(path, truth, out, options)
    LOG.info("Scores: %s", out)


def _problems(values: dict[str, Any]) -> list[str]:
    """Problems of the keys together: those without an effect, unknown metrics and unknown conventions."""
    from panollava.run.sections import metrics_problems

    defaults: Any = OmegaConf.load(Path(CONF) / "score.yaml")
    if values["benchmark"] is not None:
        return _benchmark_problems(values, defaults)
    if values["benchmark_files"] is not None:
        return ["benchmark_files: no effect without benchmark=, the name of the set. Name it, or leave this out."]
    of_answers = [key for key in values if key not in OF_BOXES + OF_BOTH]
    is_boxes = values["truth"] is not None
    idle = [key for key in (of_answers if is_boxes else OF_BOXES) if values[key] != defaults[key]]
    if idle and is_boxes:
        return [
            f"{', '.join(idle)}: no effect with truth=, which scores detections. Leave it out, or leave truth= out."
        ]
    if idle:
        return [f"{', '.join(idle)}: no effect on answers. Leave it out, or name the true boxes: truth=<file>."]
    if not is_boxes:
        return metrics_problems(values)
    # Here, as the scoring of boxes is needed for detections alone.
    from panollava.run.box_scores import chosen_conventions

    return [line for key in OF_BOXES[:2] for line in error_lines(chosen_conventions, values[key], key)]


def _benchmark_problems(values: dict[str, Any], defaults: Any) -> list[str]:
    """Problems of the keys of a benchmark together."""
    used = (*OF_BENCHMARK, *OF_BOTH, *(["words"] if values["benchmark"] == OF_CAPTIONS else []))
    idle = [key for key in values if key not in used and values[key] != defaults[key]]
    idle += ["truth"] if values["truth"] is not None else []
    found = (
        [f"{', '.join(idle)}: no effect with benchmark={values['benchmark']}. Leave it out, or leave benchmark= out."]
        if idle
        else []
    )
    if values["benchmark_files"] is None:
        found.append("benchmark_files is missing: name the set's file, or its folder, as its authors ship it.")
    return found


def _score_benchmark(path: Path, out: Path, options: ScoreOptions) -> None:
    """Scores a file of answers to a public benchmark, as released and corrected."""
    from panollava.evaluation.benchmarks.protocol import find_benchmark
    from panollava.evaluation.benchmarks.report import read_answers, score_benchmark
    from panollava.evaluation.words import choose_words

    assert options.benchmark is not None
    assert options.benchmark_files is not None
    words = choose_words(options.words)
    benchmark = find_benchmark(options.benchmark, words=words)
    files = Path(options.benchmark_files).expanduser()
    images = Path(options.images).expanduser() if options.images else None
    items = benchmark.read(files, images)
    columns = {role: getattr(options, f"{role}_column") for role in ("image", "query", "prediction")}
    answered = read_answers(path, items, shares_answers=benchmark.shares_answers, named=columns)
    report = score_benchmark(benchmark, answered)
    LOG.info("%s: %s, %s", files, counted(report.items, "item"), counted(report.pictures, "picture"))
    LOG.info("\n%s\n", report.table())
    write_json(out, {"predictions": str(path), "files": str(files), "words": words, **report.record()})


def _score_detections(path: Path, truth: Path, out: Path, options: ScoreOptions) -> None:
    """Scores a file of detections against a file of true boxes."""
    from panollava.run.box_scores import chosen_conventions, score_box_files

    conventions = chosen_conventions(options.boxes, "boxes")
    found = conventions
    if options.detection_boxes is not None:
        found = chosen_conventions(options.detection_boxes, "detection_boxes")
    words = options.boxes if options.detection_boxes is None else options.detection_boxes
    has_roll = not {"ccw", "cw"}.isdisjoint([words] if isinstance(words, str) else words or ())
    report = score_box_files(path, truth, conventions, found, options.least_score, has_roll=has_roll)
    counts = {"detection": report.scores.found_boxes, "picture": report.scores.pictures}
    LOG.info("%s: %s", path, ", ".join(counted(number, noun) for noun, number in counts.items()))
    LOG.info("%s: %s", truth, f"{report.scores.true_boxes:,} true boxes")
    said = [" ".join(vars(one).values()) for one in (conventions, found)]
    LOG.info("Conventions of the truth: %s; of the detections: %s.", *said)
    if not report.has_scores:
        LOG.info("The detections have no scores, so AP and AR are those of equal scores alone.")
    LOG.info("\n%s\n", report.table())
    write_json(out, report.record())


def _score_answers(path: Path, out: Path, options: ScoreOptions) -> None:
    """Scores a file of answers."""
    from panollava.evaluation.measure import AUTO, choose_measure, group_lines, group_scores, groups_record
    from panollava.evaluation.metrics import AnswerSet, find_metrics, metrics_record, score
    from panollava.evaluation.predictions import KEYED, read_predictions
    from panollava.evaluation.words import choose_words

    words = choose_words(options.words)
    columns = {role: getattr(options, f"{role}_column") for role in KEYED}
    scored = read_predictions(path, options.form, columns, options.score_by)
    answers = AnswerSet(scored, words, options.meteor)
    if options.clip or options.images:
        answers = _with_pictures(answers, path, options)
    report = score(answers, find_metrics(options.metrics, "metrics"), form=options.form)
    measure = choose_measure(AUTO, answers)
    groups = group_scores(answers, measure.metric)
    counts = {"answer": report.answers, "question": report.pairs, "picture": report.images}
    LOG.info("%s: %s", path, ", ".join(counted(number, noun) for noun, number in counts.items()))
    LOG.info("Form: %s. Words: %s. %s\n\n%s\n", report.form, report.words, measure, report.table())
    if groups:
        LOG.info("%s\n", "\n".join(group_lines(groups)))
    record = {"predictions": str(path), "clip": options.clip, "conditions": _conditions(path), **report.record()}
    record |= {"measure": measure.name, "groups": groups_record(groups)}
    write_json(out, record | metrics_record(options.metrics))


def _conditions(path: Path) -> Any:
    """Conditions of the answers, from the ``metrics.json`` beside them if it is of this file; else None."""
    from panollava.evaluation.predictions import METRICS, PREDICTIONS, read_answers

    beside, conditions = path.with_name(METRICS), None
    if beside.is_file():
        try:
            document = read_document(beside)
            if path.name != PREDICTIONS:
                raise ValueError(f"it is of {PREDICTIONS}")
            read_answers(path.parent, document)
            conditions = document.get("settings", {}).get("conditions")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            LOG.info("The conditions in %s are left out, as they are not of %s: %s.", beside, path, error)
            return None
    if conditions is None:
        LOG.info("Nothing beside %s records which model gave its answers, how, or to which version of the data.", path)
    return conditions


def _with_pictures(answers: AnswerSet, path: Path, options: ScoreOptions) -> AnswerSet:
    """The answers with the pictures that the file names, and with the CLIP."""
    folder = Path(options.images).expanduser() if options.images else path.parent
    files = {one: folder / one for one in answers.images}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} pictures are not there ({', '.join(missing[:3])} …). Name the folder that "
            "their paths start from with images=<folder>, or leave clip= out."
        )
    # transformers takes seconds to import.
    from panollava.evaluation.clip import Clip, read_picture
    from panollava.training.precision import choose_compute

    clip = None
    if options.clip:
        clip = Clip(options.clip, device=choose_compute(options.device, "fp32", section="").device)
    return replace(answers, pictures=lambda image: read_picture(files[image]), clip=clip)


if __name__ == "__main__":
    main()
