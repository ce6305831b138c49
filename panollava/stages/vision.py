"""Stage 1: agreement of neighbouring views where they overlap, without text or language model."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self

import torch
from annotated_types import Ge
from torch import Tensor, nn

from panollava.batch import Batch
from panollava.component import component_names, find_component, lacking
from panollava.crop.cameras import Column
from panollava.crop.matches import LEAST_COMMON, Matches, angles_between, column_matches
from panollava.crop.rings import columns_line_up, neighbour_pairs
from panollava.losses.all_reduce import all_reduce_sum
from panollava.losses.diagnostics import collapse_message
from panollava.losses.protocol import Objective
from panollava.stages.protocol import Stage, StageSetup, StepOutput

if TYPE_CHECKING:
    from panollava.model.backbones import Backbones
    from panollava.model.vision import PanoVision

LOSS = "overlap"
KEY = "stage.vision.loss"
AUTO = "auto"
MOST_UNPAIRED = 100
"""Micro-batches from the start on that may all have no pair of views, before training ends with an error."""
WITH_GRID, WITHOUT_GRID = "vicreg", "vicreg_pooled"
"""What ``auto`` is, by whether the resampler's tokens keep a grid."""
OBJECTIVES = "losses.objective"


class OverlapStage(Stage):
    """An objective over the overlaps of neighbouring views; the global view is in no pair.

    Resampler, head and the last blocks of the encoder that `setup` names train. The tokens are compared before
    ``model.tokens_per_side``, which has no weights: a finer grid has more matches, and columns that line up.

    Args:
        vision: encoder and resampler.
        setup: name, and the blocks that train.
        objective: chooses what is compared, and the loss.
        head_width: hidden width of the head; None takes the resampler's width.
        settings: type and keys of the objective, for the log and the tracker.
        pairing: line for the log about its pairs (``pairing_note``).

    Raises:
        ValueError: the encoder has fewer blocks.
    """

    def __init__(
        self,
        vision: PanoVision,
        setup: StageSetup,
        *,
        objective: Objective,
        head_width: Annotated[int, Ge(1)] | None = None,
        settings: Mapping[str, Any] | None = None,
        pairing: str = "",
    ) -> None:
        super().__init__(setup)
        assert vision.resampled_grid is not None or not objective.correspondences.needs_grid
        self.vision = vision
        self.objective = objective
        self.grid = vision.resampled_grid
        self._settings, self._pairing = dict(settings or {}), pairing
        self._unpaired: int | None = 0  # micro-batches without a pair of views so far; None once there was one
        width, hidden = vision.width, head_width or vision.width
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, width))
        self.vision.tower.train_only(setup.vision_blocks)
        self.vision.resampler.requires_grad_(True)
        if setup.checkpoint_activations:
            self.vision.tower.checkpoint_activations()

    @classmethod
    def build(  # type: ignore[override]
        cls, backbones: Backbones, model: PanoVision, setup: StageSetup, *, loss: Mapping[str, Any]
    ) -> Self:
        """The stage with the objective of the section ``loss`` (see ``build_objective``)."""
        objective, settings = _objective(backbones, loss)
        note = pairing_note(objective, backbones.crop.camera_rows, model.resampled_grid)
        return cls(model, setup, objective=objective, head_width=loss["head_width"], settings=settings, pairing=note)

    @classmethod
    def skip_reason(cls, backbones: Backbones, own: Mapping[str, Any]) -> str | None:
        """See ``Stage``; the objective is checked as well."""
        crop = backbones.crop
        reason = cls.obstacle(backbones.outline, crop.camera_rows, is_adaptive=crop.is_adaptive)
        if reason is None:
            _objective(backbones, own["loss"])
        return reason

    @staticmethod
    def obstacle(vision: PanoVision, cameras: Tensor, *, is_adaptive: bool = False) -> str | None:
        """Why this stage cannot train a model on views with `cameras` ``(V, C)``, or as many chosen ones; or None."""
        if not any(True for _ in vision.resampler.parameters()):
            return "the resampler has no parameters, so nothing but the head would train"
        if is_adaptive:
            tiles = int((cameras[:, Column.IS_GLOBAL] == 0).sum())
            return None if tiles > 1 else f"crop.views={tiles} of crop=adaptive is one tile, so nothing overlaps"
        if len(_neighbours(cameras)) == 0:
            return "no view of this crop has a neighbour, so nothing overlaps"
        return None

    @property
    def caveat(self) -> str:
        """Tokens that depend on other views agree with them without training."""
        if not getattr(self.vision.resampler, "mixes_views", False):
            return ""
        return "this resampler's tokens see other views, so their agreement is built in and evidence of nothing"

    def concern(self, metrics: Mapping[str, float]) -> str | None:
        """A warning if the features have collapsed."""
        own = {name.removeprefix(f"{LOSS}/"): value for name, value in metrics.items()}
        found = collapse_message(own, width=self.vision.width)
        if found is None:
            return None
        remedy = f"{self.objective.remedy}; a lower stage.{self.name}.lr helps too"
        return f"{found}. Start again (overwrite=true) and {remedy}."

    @property
    def uncounted(self) -> str:
        """See ``Stage``."""
        return (
            f"No two views have {LEAST_COMMON:.1%} of the smaller one in common. Raise crop.views, or take a crop "
            "whose views overlap, such as crop=anyres_e2p."
        )

    @property
    def coupled(self) -> str:
        """Statistics that the objective takes over a whole micro-batch."""
        return self.objective.coupled

    @property
    def chosen(self) -> dict[str, object]:
        """Type and keys of the objective, with the values that ``auto`` and ``null`` stand for."""
        return {f"objective.{key}": value for key, value in self._settings.items()}

    def notes(self, batch_size: int, accumulate: int, processes: int) -> list[str]:
        """The objective with its values, and how it depends on the batch size."""
        values = ", ".join(f"{key} {value}" for key, value in self._settings.items() if key != "type")
        lines = [f"Stage {self.name}: objective {self._settings['type']} ({values})."]
        lines += [self._pairing] if self._pairing else []
        if not self.coupled:
            return lines
        together = f" of {processes} processes" if processes > 1 else ""
        lines.append(
            f"Its {self.coupled} are taken over a whole micro-batch, {batch_size * processes} panoramas{together}: the "
            f"objective changes with stage.{self.name}.batch_size, and its validation loss is that of each process's "
            "own batches."
        )
        if accumulate > 1:
            lines.append(
                f"stage.{self.name}.accumulate={accumulate} averages so many micro-batches, which is not the same as "
                f"a larger one: raise stage.{self.name}.batch_size for that."
            )
        return lines

    def counts(self, batch: Batch) -> dict[str, float]:
        """Number of pairs of views."""
        return {LOSS: float(len(self._matches(batch).pairs))}

    def forward(self, batch: Batch) -> StepOutput:
        """The objective over all pairs of the micro-batch; in validation, also diagnostics of the resampler's tokens.

        Validation has no collective operations, as the numbers of batches of the processes differ.
        """
        matches, correspondences = self._matches(batch), self.objective.correspondences
        tokens = self.vision(
            batch.pixel_values,
            cameras=batch.cameras,
            view_mask=batch.view_mask,
            vision_features=batch.vision_features,
            is_pooled=False,
        )
        tokens = correspondences.tokens(tokens)
        is_paired = self._is_paired(matches)
        if not is_paired:
            matches = _stand_in(matches)
        sides = matches.take(self.head(tokens).float())
        total, metrics = self.objective(*sides, matches.mask, across_ranks=self.training and is_paired)
        if not self.training:
            metrics |= correspondences.diagnostics(tokens, matches)
        if not is_paired:
            total, metrics = total * 0.0, {name: value * 0.0 for name, value in metrics.items()}
        return StepOutput(losses={LOSS: total}, metrics={f"{LOSS}/{name}": value for name, value in metrics.items()})

    def _is_paired(self, matches: Matches) -> bool:
        """Whether a micro-batch has a pair of views; one of a crop that chooses its views may have none.

        Of a coupled objective it is that of all processes, so that all of them compute it or none does. Raises
        ValueError if none of the first ``MOST_UNPAIRED`` micro-batches of training had a pair.
        """
        pairs = float(len(matches.pairs))
        if not self.training:
            return pairs > 0
        if self.coupled and getattr(self.objective.correspondences, "least_common", False):
            pairs = float(all_reduce_sum(torch.tensor(pairs, device=matches.pairs.device)))
        if pairs > 0:
            self._unpaired = None
            return True
        if self._unpaired is not None:
            self._unpaired += 1
        if self._unpaired == MOST_UNPAIRED:
            raise ValueError(
                f"stage.{self.name}: {self._unpaired} micro-batches from the start on have nothing to compare. "
                f"{self.uncounted} Or raise stage.{self.name}.batch_size."
            )
        return False

    def _matches(self, batch: Batch) -> Matches:
        return self.objective.correspondences.match(batch.cameras, batch.view_mask, self.grid)


def _stand_in(matches: Matches) -> Matches:
    """A view with itself, in place of no pair: what is computed of it has all names, and counts as nothing."""
    pairs = matches.pairs.new_zeros(1, 3)
    index, weight = pairs.new_zeros(1, 2, 1), matches.weight_a.new_ones(1, 2, 1)
    return Matches(pairs, index, weight, index, weight, weight[..., 0] > 0)


def _objective(backbones: Backbones, loss: Mapping[str, Any]) -> tuple[Objective, dict[str, Any]]:
    return build_objective(
        loss,
        has_grid=backbones.outline.resampled_grid is not None,
        resampler=backbones.model["resampler"]["type"],
        cameras=backbones.crop.camera_rows,
        is_adaptive=backbones.crop.is_adaptive,
    )


def build_objective(
    section: Mapping[str, Any], *, has_grid: bool, resampler: str, cameras: Tensor, is_adaptive: bool = False
) -> tuple[Objective, dict[str, Any]]:
    """The objective of a checked ``stage.vision.loss``.

    With ``auto``, tokens are paired by viewing direction (``pairing=rays``) if columns of neighbours do not line up, or
    the crop chooses its views.

    Args:
        has_grid: whether the resampler's tokens keep a grid.
        cameras: ``(V, C)`` of a panorama's views.
        resampler: its name, for messages.
        is_adaptive: whether the crop chooses the cameras of each panorama, as many as these.

    Returns:
        The objective, and its type and keys with their values.

    Raises:
        ValueError: the objective needs a grid and there is none, or lacks a key that was given.
    """
    kind = str(section["type"])
    name = (WITH_GRID if has_grid else WITHOUT_GRID) if kind == AUTO else kind
    given = {k: v for k, v in section.items() if k not in ("type", "head_width") and v is not None}
    if kind == AUTO and has_grid and (is_adaptive or not columns_line_up(cameras[None], _neighbours(cameras))):
        given.setdefault("pairing", "rays")
    for key in given.keys() - objective_keys(name):
        raise ValueError(not_its_key(key, given[key], name, kind, f" resampler={resampler} keeps no grid of tokens."))
    component = objective_class(name)
    objective: Objective = component(**given)
    if missing := lacking(objective, Objective):
        raise ValueError(f"{KEY}.type={kind} is no Objective: it has no {', '.join(missing)}.")
    if is_adaptive and getattr(objective.correspondences, "pairing", None) == "columns":
        raise ValueError(
            f"{KEY}.pairing=columns pairs neighbours of a ring, and crop=adaptive has none. Set {KEY}.pairing=rays, or "
            f"leave objective={AUTO}, which takes it."
        )
    if is_adaptive:
        setattr(objective.correspondences, "least_common", LEAST_COMMON)  # noqa: B010  one of another package has none
    if objective.correspondences.needs_grid and not has_grid:
        raise ValueError(
            f"{KEY}.type={kind} compares views position by position, and resampler={resampler} keeps no grid. "
            f"Take {KEY}.type={AUTO} or {WITHOUT_GRID}, which compare whole views, or a resampler that keeps a "
            "grid, such as mlp or bimamba."
        )
    defaults = {key: parameter.default for key, parameter in inspect.signature(component).parameters.items()}
    return objective, {"type": name, **defaults, **given}


def pairing_note(objective: Objective, cameras: Tensor, grid: tuple[int, int] | None) -> str:
    """The angle between paired columns, for the log; empty for objectives without such pairs.

    Args:
        cameras: ``(V, C)`` of a panorama's views.
        grid: (H', W') of the tokens.
    """
    if grid is None or getattr(objective.correspondences, "pairing", None) != "columns":
        return ""
    mask = torch.ones(1, len(cameras), dtype=torch.bool)
    angles = torch.rad2deg(angles_between(column_matches(cameras[None], mask, grid), cameras[None], grid))
    note = (
        f"Its paired columns look {angles.mean():.1f} degrees past each other on average, {angles.max():.1f} at most."
    )
    if columns_line_up(cameras[None], _neighbours(cameras)):
        return note
    return f"{note} The tiles look up or down: {KEY}.pairing=rays pairs what looks the same way."


def _neighbours(cameras: Tensor) -> Tensor:
    return neighbour_pairs(cameras[None], torch.ones(1, len(cameras), dtype=torch.bool))


def objective_class(type: str) -> builtins.type[Objective]:
    """The class of ``objective=<type>``, which is not ``auto``."""
    return find_component(OBJECTIVES, type, "Objective", Objective)


def objective_keys(name: str) -> set[str]:
    """Config keys of an objective."""
    return set(inspect.signature(objective_class(name)).parameters)


def not_its_key(key: str, value: object, name: str, kind: str, why: str = "") -> str:
    """The message about a key of another objective."""
    owners = [other for other in component_names(OBJECTIVES, "Objective") if key in objective_keys(other)]
    taken = f", which is {name} here" if kind == AUTO else ""
    return (
        f"{KEY}.{key}={value} is a key of {', '.join(owners)}, not of {KEY}.type={kind}{taken}.{why} Keys of {name}: "
        f"{', '.join(sorted(objective_keys(name)))}. Choose another type, or leave {key}=null."
    )
