"""Changed colours: known pixels, padding, and all views alike."""

from __future__ import annotations

import pytest
import torch

from panollava.data.augment import Change, recoloured


def test_colours_change_mildly_all_views_alike_and_padding_not() -> None:
    views = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).expand(3, 3, 16, 16).clone()
    views[1, :, :4] = 0
    change = Change(brightness=1.1, contrast=0.9, saturation=1.1, hue_deg=4.0)
    changed = recoloured(views, change)
    assert changed.dtype == torch.uint8
    assert torch.equal(changed[0], changed[2])
    assert torch.equal(changed[1, :, 4:], changed[0, :, 4:])
    assert changed[1, :, :4].max() == 0
    apart = (changed[0].float() - views[0].float()).abs()
    assert 1 < apart.mean() < 25
    assert recoloured(views, Change(turn=0.3)) is views


def test_colours_of_known_pixels() -> None:
    pixels = torch.tensor([[100, 100, 100], [200, 50, 50], [255, 255, 255]], dtype=torch.uint8).T.reshape(1, 3, 1, 3)

    def after(**change: float) -> list[list[int]]:
        return recoloured(pixels, Change(**change)).reshape(3, 3).T.tolist()

    assert after(brightness=1.1) == [[110, 110, 110], [220, 55, 55], [255, 255, 255]]
    assert after(contrast=0.8) == [[106, 106, 106], [186, 66, 66], [230, 230, 230]]
    # Grey has neither saturation nor hue; red loses distance to its brightness of 0.299 * 200 + 0.701 * 50 = 94.85.
    assert after(saturation=0.5) == [[100, 100, 100], [147, 72, 72], [255, 255, 255]]
    assert after(hue_deg=15.0)[0] == [100, 100, 100]
    red = after(hue_deg=15.0)[1]
    assert 0.299 * red[0] + 0.587 * red[1] + 0.114 * red[2] == pytest.approx(94.85, abs=1)
    assert red[1] != red[2]
