"""Stage 1 with each of its objectives: what it costs and logs, and that a collapse is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import QUICK, UNTRACKED, backbones, run_train
from torch import Tensor

from panollava.logs import LOG
from panollava.losses.objective.vicreg import vicreg_pairs
from panollava.model.resampler.mlp import MlpResampler
from panollava.run.build_stage import is_left_out
from panollava.training.distributed import DistributedContext
from panollava.training.loop import validate

Build = Callable[..., Any]
OBJECTIVES = {
    "vicreg": [],
    "vicreg_rays": ["type=vicreg", "pairing=rays"],
    "vicreg_batch": ["type=vicreg_batch"],
    "vicreg_batch_rays": ["type=vicreg_batch", "pairing=rays"],
    "vicreg_pooled": ["type=vicreg_pooled"],
    "densecl": ["type=densecl"],
    "densecl_batch_rays": ["type=densecl", "pairing=rays", "negatives=batch"],
}
DIAGNOSTICS = {"neighbour_cosine", "retrieval", "effective_rank", "dead_share", "collapsed"}


def loss_keys(*options: str) -> list[str]:
    return [f"stage.vision.loss.{option}" for option in options]


@pytest.fixture
def gridless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The MLP as if its tokens kept no grid."""
    monkeypatch.setattr(MlpResampler, "token_grid", lambda self, grid: None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_and_diagnostics_are_those_of_the_tokens_and_their_head(built: Build, name: str) -> None:
    case = built("vision", "crop.overlap=0.5", *loss_keys(*OBJECTIVES[name]))
    stage, batch = case.stage.eval(), case.batch
    places = stage.objective.correspondences
    matches = places.match(batch.cameras, batch.view_mask, stage.grid)
    with torch.no_grad():
        output = stage(batch)
        tokens = places.tokens(stage.vision(batch.pixel_values, cameras=batch.cameras))
        wanted = stage.objective(*matches.take(stage.head(tokens)), matches.mask, across_ranks=False)
    assert float(output.losses["overlap"]) == pytest.approx(float(wanted.total), rel=1e-5)
    assert set(output.metrics) == {f"overlap/{key}" for key in DIAGNOSTICS | set(wanted.terms)}
    assert stage.counts(batch) == {"overlap": len(matches.pairs)}
    trained = stage.train()(batch)
    assert set(trained.metrics) == {f"overlap/{key}" for key in wanted.terms}
    trained.losses["overlap"].backward()
    got = {key for key, parameter in stage.trained().items() if parameter.grad is not None and parameter.grad.any()}
    assert got >= set(stage.trained()) - {"head.3.bias"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_float32_in_a_bf16_run(built: Build, name: str) -> None:
    case = built("vision", *loss_keys(*OBJECTIVES[name]))
    places, seen = case.stage.objective.correspondences, []
    original = case.stage.objective.__class__.__call__

    def call(self: Any, a: Tensor, b: Tensor, mask: Tensor, **options: Any) -> Any:
        seen.extend([a.dtype, b.dtype])
        return original(self, a, b, mask, **options)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16):
        patch.setattr(case.stage.objective.__class__, "__call__", call)
        output = case.stage.eval()(case.batch)
        tokens = case.stage.head(places.tokens(case.stage.vision(case.batch.pixel_values, cameras=case.batch.cameras)))
    assert tokens.dtype == torch.bfloat16
    assert seen == [torch.float32, torch.float32]
    assert {value.dtype for value in (*output.losses.values(), *output.metrics.values())} == {torch.float32}


def test_tokens_without_a_grid_are_compared_view_by_view(built: Build, gridless: None) -> None:
    case = built("vision", "crop.overlap=0.5")
    stage, batch = case.stage.eval(), case.batch
    with torch.no_grad():
        views = stage.head(stage.vision(batch.pixel_values, cameras=batch.cameras).mean(dim=2))
        count = views.shape[1]  # the first is the global view
        places = [(sample, tile) for sample in range(len(batch)) for tile in range(1, count)]
        a = torch.stack([views[sample, tile] for sample, tile in places])
        b = torch.stack([views[sample, tile % (count - 1) + 1] for sample, tile in places])
        wanted = float(vicreg_pairs(a[None], b[None]).total)
        found = stage(batch).losses["overlap"]
    assert stage.grid is None
    assert float(found) == pytest.approx(wanted * len(a), rel=1e-5)
    assert stage.counts(batch) == {"overlap": len(a)}


def test_a_grid_that_is_not_there_is_told_before_anything_is_done(built: Build, gridless: None) -> None:
    run = built("vision").run
    assert not is_left_out(run, "vision")
    with pytest.raises(ValueError, match=r"type=vicreg compares .* resampler=mlp keeps no grid"):
        is_left_out(_with_type(run, "vicreg"), "vision")
    assert not is_left_out(_with_type(run, "vicreg_pooled"), "vision")


def _with_type(run: Any, name: str) -> Any:
    cfg = run.cfg.copy()
    cfg._set_flag("readonly", False)
    cfg.stage.vision.loss.type = name
    run.cfg = cfg
    return run


def test_tokens_that_see_other_views_bring_a_caveat(built: Build) -> None:
    sizes = ("resampler.width=16", "resampler.state=4", "resampler.head_width=8")
    for scan in ("view", "ring"):
        stage = built("vision", "resampler=bimamba", *sizes, f"resampler.scan={scan}").stage
        assert ("evidence of nothing" in stage.caveat) is (scan == "ring")
    assert built("vision").stage.caveat == ""


class Data:
    """Batches to validate."""

    steps_per_epoch = 1

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def validation(self) -> Iterator[Any]:
        """All."""
        yield from self.batches


def concern(case: Any) -> str | None:
    metrics = validate(case.stage, case.stage, Data(case.batches), case.run.compute, DistributedContext())
    return case.stage.concern(metrics)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resampler_that_says_the_same_of_everything_is_a_concern(built: Build, name: str) -> None:
    case = built("vision", *loss_keys(*OBJECTIVES[name]))
    assert concern(case) is None
    case.train(steps=2)
    assert concern(case) is None
    with torch.no_grad():
        for parameter in case.stage.vision.resampler.parameters():
            parameter.zero_()
        case.stage.vision.resampler.layers[-1].bias.fill_(1.0)
    text = concern(case)
    assert text is not None
    assert "100 % of the 32 dimensions" in text
    assert "overwrite=true" in text
    assert case.stage.objective.remedy in text


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Warnings so far."""
    monkeypatch.setattr("panollava.run.run.configure_console", lambda level: None)
    monkeypatch.setattr(LOG, "propagate", True)
    caplog.set_level(logging.INFO, "panollava")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def run_vision(backbone: Callable[[str], Path], *arguments: str) -> None:
    small = ("experiment_name=x", "stage=vision", "stage.vision.epochs=8")
    run_train(*backbones(backbone), *QUICK, UNTRACKED, *small, *arguments)


@pytest.mark.parametrize("kind", ["vicreg", "vicreg_pooled"])
def test_a_run_that_collapses_says_so_when_it_happens_and_at_the_end(
    backbone: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: Callable[[], list[str]],
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_vision(backbone, *loss_keys(f"type={kind}", "variance=0"), "stage.vision.lr=0.03")
    first, *others, last = told()
    assert first.startswith("Stage vision: features have collapsed: ")
    assert "raise stage.vision.loss.variance (it is 0)" in first
    assert last.startswith("Stage vision ended with a concern: features have collapsed: ")
    assert not any("collapsed" in text for text in others)


def test_a_healthy_run_warns_of_nothing(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[[], list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_vision(backbone)
    assert told() == []


def test_all_stages_run_without_a_grid(
    backbone: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gridless: None,
    told: Callable[[], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_train(*backbones(backbone), *QUICK, UNTRACKED, "trainer.max_steps=1", "experiment_name=x")
    assert "objective vicreg_pooled (invariance 25.0" in caplog.text
    assert all((Path("runs/x") / stage).is_dir() for stage in ("vision", "resampler", "finetune"))
    assert told() == []


def test_what_a_batch_couples_is_told_with_what_it_depends_on(
    built: Build, told: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    built("vision", "stage.vision.accumulate=2")
    assert "objective vicreg (pairing columns, invariance 25.0" in caplog.text
    assert "micro-batch" not in caplog.text
    built("vision", *loss_keys("type=densecl", "negatives=batch"), "stage.vision.accumulate=2", "overwrite=true")
    assert "Its negatives are taken over a whole micro-batch, 4 panoramas: " in caplog.text
    assert caplog.text.count("stage.vision.accumulate=2 averages") == 1
