"""Evaluates a trained run again: on other data, with another crop, or as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from panollava.component import allow
from panollava.data.scenes.questions import names_direction, turn_words
from panollava.evaluation.benchmarks.protocol import find_benchmark
from panollava.evaluation.clip import clip_config
from panollava.evaluation.exact_match import rotation_consistency
from panollava.evaluation.measure import AUTO
from panollava.evaluation.results import write_measures
from panollava.evaluation.words import Words, choose_words
from panollava.logs import LOG, counted
from panollava.model.api import PanoLlava
from panollava.model.detector import PanoDetector
from panollava.run.benchmark import BenchmarkFiles, answer_benchmark
from panollava.run.config_check import EvaluationOptions
from panollava.run.data import data_name, data_overrides, evaluation_options
from panollava.run.evaluate import answer_questions, answer_split
from panollava.run.evaluate_places import evaluate_places
from panollava.run.features import open_features
from panollava.run.options import EvalOptions
from panollava.run.restore import Restored, measure, restore
from panollava.run.sources import open_source
from panollava.run.tools import Tools
from panollava.run.tracker import open_tracker
from panollava.run_folder import METADATA, find_run_folder
from panollava.stages.registry import STAGES
from panollava.store.catalogue import StoreOptions
from panollava.training.precision import Compute, recorded_compute


def evaluate_again(options: EvalOptions, sections: dict[str, Any]) -> None:
    """Answers the questions of a split, or of a public benchmark, with a run's model, and measures its loss.

    Args:
        options: the plain keys of ``conf/eval.yaml``, checked.
        sections: its other keys: ``crop``, ``data``, ``evaluation``, ``generation``, ``store`` and ``tracking``.
    """
    if options.clip is not None:
        clip_config(options.clip)
    allow(options.allow)
    run = restore(options.checkpoint, config=options.config, crop=sections["crop"], generation=sections["generation"])
    for line in run.lines():
        LOG.info("%s", line)
    compute = recorded_compute(options.device, run.settings["precision"])
    if options.benchmark is not None:
        _evaluate_benchmark(run, options, sections, compute)
        return
    learnt = run.settings["classes"] if run.record.finds else ()
    data = data_overrides(options, run.settings["data"], turn_deg=options.turn_deg, learnt=learnt)
    with _tools(run, options, sections, compute) as tools:
        own = _evaluation_options(options, sections["evaluation"]["measure"], run.settings["evaluation"])
        evaluation = _Evaluation(run, options, own, data, tools)
        if not run.record.answers:
            if run.record.finds:
                evaluation.find(run)
            else:
                evaluation.measure(None, options.split)
            return
        pano = PanoLlava.from_checkpoint(run.checkpoint, run.settings, device=compute.device, dtype=compute.dtype)
        if options.loss:
            recorded = run.settings.get("validation_loss")
            LOG.info("Validation loss in training: %s", "not recorded" if recorded is None else f"{recorded:.6f}")
            # A data file that is named has no validation split beside it: the loss is of its own answers.
            evaluation.measure(pano, "val" if options.csv_input is None else options.split)
        evaluation.answer(pano)
        beside = _finding_stage(options.checkpoint)
        if beside is not None and options.csv_input is None:
            evaluation.find(restore(str(beside), crop=sections["crop"]))


@contextmanager
def _tools(run: Restored, options: EvalOptions, sections: dict[str, Any], compute: Compute) -> Iterator[Tools]:
    """The tools of an evaluation, whose tracker is open in the block."""
    placed: dict[str, Any] = {"outbox": Path(options.results_dir), "job": "eval", "about": [run.checkpoint]}
    name, tags = f"eval {run.settings['experiment_name']}", {"panollava.folder": str(run.folder)}
    store = StoreOptions(**sections["store"])
    with open_tracker(sections["tracking"], run_name=name, tags=tags, **placed) as tracker:
        yield Tools(compute, store, store.file_identity(), tracker, options.num_workers)


def _evaluate_benchmark(run: Restored, options: EvalOptions, sections: dict[str, Any], compute: Compute) -> None:
    """Answers the items of a public benchmark; what is wrong with its files is found before the model is opened."""
    if not run.record.answers:
        raise ValueError(
            f"{run.checkpoint} is of stage {run.stage}, which gives no answers, so it cannot be asked "
            f"benchmark={options.benchmark}. Name a run of a stage with text, such as finetune."
        )
    options = replace(options, blank=bool(options.blank))  # on request alone, not as in the run's own evaluation
    evaluation = _evaluation_options(options, None, run.settings["evaluation"])
    asked = _benchmark_files(options, sections["data"]["dir"], choose_words(evaluation.words))
    asked.check_pictures(run.reader)
    if sections["generation"]["max_new_tokens"] is None:
        decoding = {**run.settings["generation"], "max_new_tokens": asked.benchmark.new_tokens}
        run = replace(run, settings={**run.settings, "generation": decoding})
    with _tools(run, options, sections, compute) as tools:
        pano = PanoLlava.from_checkpoint(run.checkpoint, run.settings, device=compute.device, dtype=compute.dtype)
        result = answer_benchmark(run, asked, evaluation, tools, pano=pano)
    LOG.info("%s", result.summary(asked.path))
    LOG.info("Predictions and scores: %s", result.folder)


def _benchmark_files(options: EvalOptions, dir: str | None, words: Words) -> BenchmarkFiles:
    """The set that the keys name. In ``data.dir`` its file has the authors' name, or that of ``benchmark_files``."""
    assert options.benchmark is not None
    folder = None if dir is None else Path(dir).expanduser()
    path, images = folder, None if options.images is None else Path(options.images).expanduser()
    if options.benchmark_files is not None:
        path = (folder or Path()) / Path(options.benchmark_files).expanduser()
        images = images or folder
    assert path is not None
    key = "data.dir" if options.benchmark_files is None else "benchmark_files"
    return BenchmarkFiles(find_benchmark(options.benchmark, words=words, key=key), path, images)


def _finding_stage(checkpoint: str | None) -> Path | None:
    """The stage that finds boxes of an experiment's folder; None where another folder is named, or there is none."""
    root = Path(checkpoint or "").expanduser()
    if checkpoint is None or any(root.glob("*.ckpt")) or (root / METADATA).is_file():
        return None
    try:
        return find_run_folder(root, [name for name, record in STAGES.items() if record.finds])
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class _Evaluation:
    run: Restored
    options: EvalOptions
    evaluation: EvaluationOptions
    data: dict[str, Any]
    tools: Tools

    def answer(self, pano: PanoLlava) -> None:
        """Answers, scores and records a split's questions."""
        options, data, evaluation, tools = self.options, self.data, self.evaluation, self.tools
        result = answer_split(self.run, data, options.split, evaluation, tools, pano=pano)
        LOG.info("%s", result.summary(data_name(options, data)))
        if options.turn_deg:
            upright = open_source({**data, "turn_deg": 0.0}, options.split, pano.crop)
            features, workers = open_features(tools.store, pano.model.vision.tower, pano.crop), tools.num_workers
            with tools.compute.autocast():
                before = answer_questions(pano, upright, evaluation, num_workers=workers, features=features)
            count, share = rotation_consistency(before, result.predictions, partial(turned, turn_deg=options.turn_deg))
            LOG.info("%s", followed(count, share))
        LOG.info("Predictions and metrics: %s", result.folder)

    def find(self, run: Restored) -> None:
        """Finds boxes and masks in a split, scores and records them."""
        options, compute = self.options, self.tools.compute
        detector = PanoDetector.from_checkpoint(
            run.checkpoint, run.settings, device=compute.device, dtype=compute.dtype
        )
        source = open_source(self.data, options.split, detector.crop)
        result = evaluate_places(run, detector, source, options.split, self.evaluation, self.tools)
        LOG.info("%s", result.summary(data_name(options, self.data)))
        LOG.info("Detections, masks and scores: %s", result.folder)

    def measure(self, pano: PanoLlava | None, split: str) -> None:
        """Computes and records the loss and the stage's own metrics on a split."""
        run, data, tools = self.run, self.data, self.tools
        found = measure(run, pano, data, split, tools)
        shown = ", ".join(f"{name} {value:.6f}" for name, value in found.items())
        LOG.info("Stage %s on %s: %s", run.stage, split, shown)
        tools.tracker.metrics({f"{split}/{name}": value for name, value in found.items()}, step=0)
        settings = {**run.subject(tools.known), "split": split, "data": data}
        path = write_measures(Path(self.options.results_dir), run.settings["experiment_name"], found, settings)
        LOG.info("Measures: %s", path)


def followed(count: int, share: float) -> str:
    """What ``rotation_consistency`` found, in words."""
    if not count:
        return "No right answer names a direction, so there is none that could follow the rotation."
    return f"Of {counted(count, 'answer')} with a direction, {100 * share:.1f} % follow the rotation."


def turned(answer: str, turn_deg: float) -> str | None:
    """The answer for the rotated panorama; None where it names no direction."""
    return turn_words(answer, turn_deg) if names_direction(answer) else None


def _evaluation_options(options: EvalOptions, measure: str | None, recorded: dict[str, Any]) -> EvaluationOptions:
    """The run's own evaluation settings with what the command line changes."""
    recorded = {"clip": None, "metrics": None, "measure": AUTO, **recorded}  # older runs do not have them
    given = {key: getattr(options, key) for key in ("blank", "words", "meteor", "clip", "metrics")}
    given["measure"] = measure
    own = {key: recorded[key] if value is None else value for key, value in given.items()}
    own |= {key: getattr(options, key) for key in ("max_samples", "log_samples", "log_interval", "log_max_samples")}
    return evaluation_options(options, recorded, **own)
