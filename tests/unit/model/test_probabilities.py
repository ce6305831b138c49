"""Log-probabilities of answers, kept while they are generated."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation import LogitsProcessorList

from panollava.data.world import WorldSource
from panollava.generation import GenerationOptions
from panollava.model.api import PanoLlava
from panollava.model.decoding import ChosenProbabilities
from panollava.model.hub import SHIPPED

FOLDER = SHIPPED["panollava/tiny-qwen3-boxes"]


def test_they_are_those_of_the_model() -> None:
    """Of two answers of different lengths, the shorter one is not followed by pads in its mean."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32),
        AutoTokenizer.from_pretrained(FOLDER),
    )
    texts = [
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        for text in ("where is it?", "describe the scene.")
    ]
    batch, stop = tokenizer(texts, return_tensors="pt", padding=True), [tokenizer.eos_token_id]
    chosen = ChosenProbabilities()
    length = batch["input_ids"].shape[1]
    ids = model.generate(
        **batch, do_sample=False, max_new_tokens=12, logits_processor=LogitsProcessorList([chosen]), eos_token_id=stop
    )
    means = chosen.means(ids[:, length:], stop)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(ids[:, length:])], dim=1)
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    told = logits[:, length - 1 : -1].log_softmax(-1).gather(-1, ids[:, length:, None])[..., 0]
    for row, new in enumerate(ids[:, length:].tolist()):
        count = new.index(stop[0]) + 1 if stop[0] in new else len(new)
        assert means[row] == pytest.approx(float(told[row, :count].mean()), abs=1e-4)


@pytest.mark.parametrize(("options", "count"), [({}, 2), ({"num_beams": 2}, 0), ({"temperature": 1.0}, 0)])
def test_only_greedy_decoding_has_them(options: dict[str, float], count: int) -> None:
    pano = PanoLlava.from_backbones("panollava/tiny-siglip", "panollava/tiny-qwen3-boxes", latent_width=64)
    generation = GenerationOptions(max_new_tokens=4).changed(options)
    views = pano.views(WorldSource(split="test", scenes=1).panorama(0))
    batch = pano.batch([views, views], [pano.encode("where is it?"), pano.encode("what is there?")])
    scores: dict[str, float] = {}
    answers = pano.answer(batch, generation=generation, scores=scores)
    assert len(scores) == count
    assert all(score < 0 for score in scores.values())
    assert answers == pano.answer(batch, generation=generation)
