"""What the training loop needs of a stage: the base class of all stages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from panollava.batch import Batch
from panollava.model.trainable import Blocks, is_backbone, plain_name
from panollava.stages.registry import StageRecord

if TYPE_CHECKING:
    from panollava.model.backbones import Backbones
    from panollava.model.vision import PanoVision
    from panollava.model.vlm import PanoLlavaForConditionalGeneration


@dataclass
class StepOutput:
    """What one micro-batch costs.

    Attributes:
        losses: name -> weighted *sum* over the micro-batch's targets (scalar, fp32). The loop divides each by
            its count over the whole accumulation window and all processes, so that cutting a batch
            differently does not change the objective.
        metrics: ``<loss>/<term>`` -> detached sum over the same count as the loss, logged only.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StageSetup:
    """What the options that all stages have in common say of the model.

    Attributes:
        name: of the stage.
        vision_blocks: blocks of the encoder that train (see ``VisionTower.train_only``).
        language_blocks: blocks of the language model that train (see ``train_language``).
        checkpoint_activations: recompute activations in the backward pass to save memory.
    """

    name: str
    vision_blocks: Blocks = 0
    language_blocks: Blocks = 0
    checkpoint_activations: bool = False


class Stage(nn.Module):
    """A module that knows what trains and what a step costs; the loop knows no stage by name.

    The arguments of a subclass are the model, its ``StageSetup``, and the stage's own options, which are keys of
    ``stage.<name>``. The class of another package states its `record`.

    Args:
        setup: name, and what of the backbones trains.
    """

    record: ClassVar[StageRecord]
    vision: PanoVision

    def __init__(self, setup: StageSetup) -> None:
        super().__init__()
        self.name = setup.name

    if TYPE_CHECKING:

        def __call__(self, batch: Batch) -> StepOutput:
            """Weighted loss sums and metrics of a micro-batch: what ``forward`` returns."""
            ...

    @classmethod
    def build(cls, backbones: Backbones, model: Any, setup: StageSetup, **own: Any) -> Self:  # noqa: ARG003
        """The stage around a new model; where a subclass overrides this, its own options are keywords here.

        Args:
            backbones: of which the model was made; they know the crop.
            model: ``PanoLlavaForConditionalGeneration``, or ``PanoVision`` where the stage reads pictures alone.
            setup: name, and what of the backbones trains.
            own: the stage's own options.
        """
        return cls(model, setup, **own)  # type: ignore[call-arg]

    @classmethod
    def takes(cls) -> tuple[Callable[..., Any], list[str]]:
        """What takes the stage's own options, class or ``build``, and those of its arguments that are none."""
        if cls.build.__func__ is Stage.build.__func__:  # type: ignore[attr-defined]
            return cls, list(inspect.signature(cls).parameters)[:2]
        return cls.build, list(inspect.signature(cls.build).parameters)[:3]

    @classmethod
    def own_options(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of ``stage.<name>`` that are the stage's own options."""
        target, given = cls.takes()
        known = inspect.signature(target).parameters.keys() - set(given)
        return {key: value for key, value in section.items() if key in known}

    @classmethod
    def skip_reason(cls, backbones: Backbones, own: Mapping[str, Any]) -> str | None:  # noqa: ARG003
        """Why this stage has nothing to learn from a model and its views, or None.

        Args:
            backbones: of the model; their outline is enough.
            own: the stage's own options.

        Raises:
            ValueError: it has something to learn, but not with these options.
        """
        return None

    @property
    def composite(self) -> PanoLlavaForConditionalGeneration | None:
        """The model with its language model; None where the stage reads pictures alone."""
        return None

    @property
    def caveat(self) -> str:
        """What its numbers must be read with, printed beside them; empty where there is nothing to say."""
        return ""

    @property
    def coupled(self) -> str:
        """What its loss takes over a whole micro-batch, so that its size is part of the objective; empty: nothing."""
        return ""

    @property
    def chosen(self) -> dict[str, object]:
        """Parameters for the tracker that the config leaves open, by key below ``stage.<name>``."""
        return {}

    def notes(self, batch_size: int, accumulate: int, processes: int) -> list[str]:
        """Lines for the log before the first step.

        Args:
            batch_size: panoramas of a micro-batch and process.
            accumulate: micro-batches of an optimiser step.
            processes: that train the stage together.
        """
        return []

    def counts(self, batch: Batch) -> dict[str, float]:
        """Denominator of each loss, and of its metrics, without a forward pass."""
        raise NotImplementedError

    def concern(self, metrics: Mapping[str, float]) -> str | None:
        """What in a validation's means, by name, says that nothing worth having is learnt, and what to do about it.

        Returns:
            What was measured, what it means and what to change, for the user; None where nothing is wrong.
        """
        return None

    def trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that trains, names as in checkpoints: those in ``model`` without it."""
        return {name: weight for name, weight in self._weights().items() if weight.requires_grad}

    def frozen_backbone(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of a named backbone that does not train here, though an earlier stage may have."""
        return {n: weight for n, weight in self._weights().items() if is_backbone(n) and not weight.requires_grad}

    def _weights(self) -> dict[str, nn.Parameter]:
        return {plain_name(name.removeprefix("model.")): weight for name, weight in self.named_parameters()}
