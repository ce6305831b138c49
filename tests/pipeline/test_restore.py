"""The crop that a restored run is given."""

from __future__ import annotations

from panollava.pipeline.restore import _with_overrides


def test_another_crop_reads_the_pictures_as_the_run_did() -> None:
    recorded = {"type": "anyres_e2p", "fov_deg": 60.0, "overlap": 0.25, "pitch_rows_deg": [0.0], "view_size": 32}
    pictures = {"renderer": "torch", "device": "cpu", "panorama_fov_deg": [180, 60]}
    other = _with_overrides({**recorded, **pictures}, {"type": "e2p", "overlap": 0.0})
    own = {"type": "e2p", "fov_deg": 90.0, "overlap": 0.0, "pitch_rows_deg": [0.0], "view_size": 32}
    assert other == {**own, **pictures}
    assert _with_overrides(recorded, {"panorama_fov_deg": [180, 60]})["panorama_fov_deg"] == [180, 60]
