"""The miniature language model's tokenizer: byte-level BPE with one token for each word of the built-in world."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from panollava.data.scenes.questions import CAPTION_REQUEST, KINDS, ask_all, caption
from panollava.data.scenes.scene import COLOURS, HEIGHTS, POLES, SECTORS, SHAPES, scene_at

END_OF_TURN = "<|im_end|>"
START_OF_TURN = "<|im_start|>"
PAD = "<pad>"
SPECIAL = (PAD, START_OF_TURN, END_OF_TURN)
BACKGROUND_WORDS = ("sky", "floor")
VOCABULARY = 480
"""256 bytes, the special tokens, and every word below, with and without a space before it."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def world_words() -> list[str]:
    """The words things are described with."""
    directions = {word for sector in SECTORS for word in sector.split()}
    poles = [word for pole in POLES.items() for word in pole]
    return sorted({*directions, *HEIGHTS, *COLOURS, *SHAPES, *poles, *BACKGROUND_WORDS})


def make_tokenizer(scenes: int = 400) -> PreTrainedTokenizerFast:
    """Learns the merges from conversations about `scenes` scenes; the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(scenes), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        padding_side="left",
        model_max_length=2048,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _texts(scenes: int) -> Iterator[str]:
    words = world_words()
    for index in range(scenes):
        scene = scene_at(0, "backbones", index)
        rng = np.random.default_rng([0, index])
        yield f"{CAPTION_REQUEST} {caption(scene)}"
        for asked in ask_all(scene, KINDS, rng):
            for question, answer in asked.turns:
                yield question
                yield answer
        # Every word alone and in mid-sentence, so that each is a single token in both places.
        yield from words
        yield "user assistant system " + " ".join(words)
        yield "user"
        yield "assistant"
        yield "system"
