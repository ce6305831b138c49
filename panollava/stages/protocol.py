"""The base class of all stages: the interface that the training loop uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from panollava.batch import Batch
from panollava.model.trainable import Blocks, is_backbone, plain_name
from panollava.stages.registry import StageRecord

if TYPE_CHECKING:
    from panollava.crop.boxes import PictureBoxes
    from panollava.crop.places import PlaceEncoder
    from panollava.model.backbones import Backbones
    from panollava.model.vision import PanoVision
    from panollava.model.vlm import PanoLlavaForConditionalGeneration


@dataclass
class StepOutput:
    """Losses and metrics of one micro-batch.

    Attributes:
        losses: name -> weighted *sum* over the micro-batch's targets (scalar, fp32). The loop divides it by the count
            over the whole accumulation window and all processes, so that the objective does not depend on how a batch
            is split.
        metrics: ``<loss>/<term>`` -> detached sum over the same count as the loss, logged only.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StageSetup:
    """Options of the model that all stages have in common."""

    name: str  # of the stage
    vision_blocks: Blocks = 0  # blocks of the encoder that train (see ``VisionTower.train_only``)
    language_blocks: Blocks = 0  # blocks of the language model that train (see ``train_language``)
    checkpoint_activations: bool = False  # recompute activations in the backward pass to save memory
    classes: tuple[str, ...] = ()  # names of the classes of boxes and masks in the data
    cameras: Tensor | None = None  # ``(V, C)`` of the views
    is_fresh: bool = False  # no earlier stage or checkpoint gives it weights


class Stage(nn.Module):
    """A module that chooses the weights that train and computes losses; the loop compares no stage names.

    The arguments of a subclass are the model, its ``StageSetup``, and the stage's own options, which are keys of
    ``stage.<name>``. A class of another package has an attribute `record`.
    """

    record: ClassVar[StageRecord]
    vision: PanoVision
    parts_logits: bool = False
    """Whether at most ``stages.language.PART`` logits are in memory at a time."""

    def __init__(self, setup: StageSetup) -> None:
        super().__init__()
        self.name = setup.name

    if TYPE_CHECKING:

        def __call__(self, batch: Batch) -> StepOutput:
            """Weighted loss sums and metrics of a micro-batch, from ``forward``."""
            ...

    @classmethod
    def build(cls, backbones: Backbones, model: Any, setup: StageSetup, **own: Any) -> Self:  # noqa: ARG003
        """Builds the stage around a new model; a subclass that overrides this names its own options as keywords.

        Args:
            backbones: of the model; they have the crop.
            model: ``PanoLlavaForConditionalGeneration``, or ``PanoVision`` for a stage without text.
            setup: name, and the blocks that train.
            own: the stage's own options.
        """
        return cls(model, setup, **own)  # type: ignore[call-arg]

    @classmethod
    def takes(cls) -> tuple[Callable[..., Any], list[str]]:
        """The callable with the stage's own options, class or ``build``, and its first arguments, which are none."""
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
            backbones: of the model; only their outline is read.
            own: the stage's own options.

        Raises:
            ValueError: it has something to learn, but not with these options.
        """
        return None

    @classmethod
    def misfit(
        cls,
        backbones: Backbones,  # noqa: ARG003
        names: Sequence[str],  # noqa: ARG003
        pictures: Sequence[PictureBoxes],  # noqa: ARG003
        own: Mapping[str, Any],  # noqa: ARG003
    ) -> str:
        """Why a stage that finds boxes cannot be trained on these views and data, and the way out; empty where it can.

        Args:
            backbones: of the model; only their outline is read.
            names: of the classes; none where the data have no boxes.
            pictures: boxes of some pictures of the training split.
            own: the stage's own options.
        """
        return ""

    @property
    def borrows(self) -> bool:
        """Whether weights that do not train are read from the checkpoint that it starts from, and not saved again."""
        return False

    @property
    def composite(self) -> PanoLlavaForConditionalGeneration | None:
        """The model with its language model; None for a stage without text."""
        return None

    @property
    def places(self) -> PlaceEncoder | None:
        """Makes the targets of what is where in a picture; None for a stage that does not learn it."""
        return None

    @property
    def caveat(self) -> str:
        """A warning printed beside its numbers; may be empty."""
        return ""

    @property
    def uncounted(self) -> str:
        """Why no sample of a split may count for its loss, and the way out; may be empty."""
        return ""

    @property
    def coupled(self) -> str:
        """Statistics that its loss takes over a whole micro-batch, which make the objective depend on batch size."""
        return ""

    @property
    def chosen(self) -> dict[str, object]:
        """Values of options that the config leaves open, for the tracker, by key below ``stage.<name>``."""
        return {}

    def notes(self, batch_size: int, accumulate: int, processes: int) -> list[str]:
        """Lines for the log before the first step; ``batch_size`` is that of a micro-batch on one process."""
        return []

    def counts(self, batch: Batch) -> dict[str, float]:
        """Denominator of each loss and its metrics, without a forward pass."""
        raise NotImplementedError

    def concern(self, metrics: Mapping[str, float]) -> str | None:
        """A warning if the means of a validation show that training fails: measurement, meaning and remedy; or None."""
        return None

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that train, by their names in checkpoints, which lack the prefix ``model.``."""
        return {name: weight for name, weight in self._weights().items() if weight.requires_grad}

    def frozen_backbone(self) -> dict[str, nn.Parameter]:
        """Parameters of the backbones that do not train here; an earlier stage may have trained them."""
        return {n: weight for n, weight in self._weights().items() if is_backbone(n) and not weight.requires_grad}

    def _weights(self) -> dict[str, nn.Parameter]:
        return {plain_name(name.removeprefix("model.")): weight for name, weight in self.named_parameters()}
