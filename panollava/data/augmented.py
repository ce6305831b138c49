"""Training records with changed pictures."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.data import Dataset

from panollava.crop.crop import Crop
from panollava.crop.extent import extent_of
from panollava.crop.turn import turned
from panollava.data.augment import Augment
from panollava.data.colour import recoloured
from panollava.data.dataset import Sample
from panollava.data.records import Record, Source
from panollava.prompt import Encoded


class AugmentedDataset(Dataset[Sample]):
    """Records with changed pictures, indexed by (epoch, index) as those of ``PanoDataset`` are.

    Args:
        source: the training split.
        crop: cuts the views.
        encode: makes tokens of a record; None for stages without text.
        augment: draws the changes.
    """

    def __init__(
        self, source: Source, crop: Crop, encode: Callable[[Record], Encoded] | None, augment: Augment
    ) -> None:
        self.source = source
        self.crop = crop
        self.encode = encode
        self.augment = augment

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        change = self.augment.change(epoch, index, self.source.directions(index))
        record = self.source.turned_record(index, epoch, 360.0 * change.turn)
        panorama = self.source.panorama(index)
        # A whole number of columns: at most half a column from the angle that the texts are turned by.
        panorama = turned(panorama, round(change.turn * extent_of(panorama)[1]))
        views = recoloured(self.crop.views(panorama), change)
        text = None if self.encode is None else self.encode(record)
        return Sample(sample_id=record.sample_id, views=views, cameras=self.crop.camera_rows, text=text)
