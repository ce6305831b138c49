"""What sets the perceiver apart: one attention reads features and latents together."""

from __future__ import annotations

import torch

from panollava.model.resampler.perceiver import PerceiverResampler


def test_keys_and_values_come_from_features_and_latents_together():
    torch.manual_seed(0)
    resampler = PerceiverResampler(input_width=6, output_width=8, latents=3, depth=1, width=16, heads=2)
    seen = []
    attention = resampler.layers[0].attention
    attention.register_forward_hook(lambda module, arguments, result: seen.append(arguments))
    mask = torch.ones(1, 2, dtype=torch.bool)
    resampler(torch.randn(1, 2, 7, 6), grid=(1, 7), view_mask=mask, cameras=torch.zeros(1, 2, 11))
    ((latents, context),) = seen
    assert latents.shape == (2, 3, 16)
    assert context.shape == (2, 7 + 3, 16)
    assert torch.equal(context[:, 7:], latents)


def test_defaults_are_the_documented_ones():
    with torch.device("meta"):
        resampler = PerceiverResampler(input_width=6, output_width=8)
    assert resampler.latents.shape == (64, 1024)
    assert len(resampler.layers) == 6
    assert resampler.layers[0].feed_forward.expand.out_features == 4 * 1024
