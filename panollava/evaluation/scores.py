"""All scores of a set of predictions with their intervals: what ``score`` prints and evaluations record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from panollava.evaluation.answers import is_correct
from panollava.evaluation.captions import Answer, CaptionScores, score_captions, scores_record
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.read_predictions import Form, Scored
from panollava.evaluation.statistics import Interval, mean_interval
from panollava.evaluation.words import Words, split_words

EXACT = "exact match"
NO_CLIP = "needs a CLIP, and none is named (clip=<folder>)"


def as_scored(predictions: Sequence[Prediction]) -> list[Scored]:
    """An evaluation's answers, each with all references of its question."""
    return [
        Scored(one.image_id, one.question, one.kind, one.prediction, one.references, str(one.turn), one.written_history)
        for one in predictions
    ]


@dataclass(frozen=True)
class ScoreReport:
    """Scores and what they are made of.

    Attributes:
        form: which references an answer is scored against.
        words: how texts were split.
        answers: scored answers.
        pairs: distinct questions about distinct pictures; the same words in another turn are another question.
        images: distinct pictures, over which the intervals are.
        scores: by name.
        kinds: exact match of each question type.
        unavailable: scores that are not there, and why.
    """

    form: Form
    words: Words
    answers: int
    pairs: int
    images: int
    scores: dict[str, Interval]
    kinds: dict[str, Interval]
    unavailable: dict[str, str]

    def record(self) -> dict[str, Any]:
        """As JSON keeps it: a score that is not there is null."""
        return asdict(self) | {"scores": scores_record(self.scores, self.unavailable)}

    def table(self) -> str:
        """Markdown: a line a score."""
        rows = [(name, str(interval)) for name, interval in self.scores.items()]
        rows += [(f"{EXACT}, {kind}", str(interval)) for kind, interval in self.kinds.items() if len(self.kinds) > 1]
        rows += [(name, f"unavailable: {why}") for name, why in sorted(self.unavailable.items())]
        lines = ["| score | value (95 % interval over pictures, from five on) |", "|---|---|"]
        return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)])


def caption_scores(scored: Sequence[Scored], words: Words, *, meteor: bool = True) -> CaptionScores:
    """Caption scores of texts as they were written (see ``score`` for the arguments)."""
    return score_captions(split_answers(scored, words), meteor=meteor)


def with_clip(captions: CaptionScores, clip: Mapping[str, Interval] | None) -> CaptionScores:
    """Caption scores with CLIP-scores beside them, or with the reason why those are not there."""
    if clip is None:
        return replace(captions, unavailable={**captions.unavailable, "CLIP-score": NO_CLIP})
    return replace(captions, scores={**captions.scores, **clip})


def split_answers(scored: Sequence[Scored], words: Words) -> list[Answer]:
    """The texts as words."""
    # A text that is a reference of many answers is split once.
    texts = list(dict.fromkeys(text for one in scored for text in (one.prediction, *one.references)))
    split = dict(zip(texts, split_words(texts, words), strict=True))
    return [
        Answer(split[one.prediction], tuple(split[text] for text in one.references), one.image_id) for one in scored
    ]


def score(
    scored: Sequence[Scored],
    *,
    form: Form,
    words: Words,
    meteor: bool = True,
    clip: Mapping[str, Interval] | None = None,
) -> ScoreReport:
    """All scores of predictions.

    Args:
        scored: of ``read_predictions``.
        form: recorded; ``scored`` has it in its references.
        words: how texts are split for the caption scores.
        meteor: METEOR too where there is Java.
        clip: CLIP-scores where they were taken.

    Raises:
        ValueError: there are no predictions.
    """
    images = [one.image_id for one in scored]
    captions = with_clip(caption_scores(scored, words, meteor=meteor), clip)
    right = [float(is_correct(one.prediction, one.references)) for one in scored]
    kinds = {}
    for kind in sorted({one.kind for one in scored}):
        own = [place for place, one in enumerate(scored) if one.kind == kind]
        kinds[kind] = mean_interval([right[place] for place in own], [images[place] for place in own])
    return ScoreReport(
        form=form,
        words=words,
        answers=len(scored),
        pairs=len({one.asked for one in scored}),
        images=len(set(images)),
        scores={EXACT: mean_interval(right, images), **captions.scores},
        kinds=kinds,
        unavailable=captions.unavailable,
    )
