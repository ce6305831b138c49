"""What the features of a data set will take, said beforehand, beside what they then take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import QUICK, UNTRACKED, backbones, opened

from panollava.crop.crop import Crop
from panollava.features import warm
from panollava.logs import in_words
from panollava.run.features import _signature, forecast, open_features
from panollava.store.catalogue import kept_stores


def test_the_forecast_is_what_is_written(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(*backbones(backbone), *QUICK, UNTRACKED) as run:
        tower, crop, sources = run.backbones.tower, run.backbones.crop, [run.data.train, run.data.val]
        told = forecast(run.store, tower, crop, sources)
        features = open_features(run.store, tower, crop)
        assert features is not None
        warm(sources, crop, features, num_workers=0)
        (kept,) = kept_stores(run.store.dir)
        each = 5 * 16 * 32 * 4
        assert kept.panoramas == 16
        assert told.startswith(f"Feature store: 16 panoramas of {in_words(each)} (5 views x 16 x 32 in float32) take")
        assert f"up to {in_words(16 * each)} in {Path('cache/features')}; store.max_gib=50." in told
        written = sum(file.stat().st_size for file in kept.folder.glob("*/*.safetensors"))
        assert 16 * each < written < 16 * (each + 512)
        small = replace(run.store, max_gib=5.5 * each / 2**30)
        assert "features of about 5 of them are kept" in forecast(small, tower, crop, sources)
        monkeypatch.setattr("panollava.store.quota.SPARE_BYTES", 2**60)
        assert "whose disk has 0 bytes to spare; store.max_gib=50." in forecast(run.store, tower, crop, sources)


@pytest.mark.parametrize(
    ("crop", "are_strips"),
    [
        ({"type": "sliding_window", "fov_deg": 90.0}, False),
        ({"type": "sliding_window", "fov_deg": 45.0}, True),
        ({"type": "anyres_max", "max_tiles": 6}, False),
        *(({"type": name}, False) for name in ("resize", "anyres", "anyres_e2p", "e2p", "cubemap", "adaptive")),
    ],
)
def test_features_of_narrow_strips_alone_have_a_new_name(crop: dict[str, object], are_strips: bool) -> None:
    """Version 0.2 left rows of a fine panorama out of them; its features of all other views are still right."""
    assert ("strips" in _signature(Crop.from_spec(crop, view_size=(224, 224)))) == are_strips
