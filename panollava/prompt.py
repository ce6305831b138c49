"""Conversation -> token ids, targets and image placeholders: one function for training and for generation.

Text is tokenised in pieces that begin at special tokens, where tokenizers split anyway: pieces can be kept, and
the check that each prompt is a token prefix of the whole stays linear.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import AddedToken

from panollava.chat_format import ChatFormat, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE_TOKEN = "<image>"

_REMEMBERED_PIECES = 20_000


def add_image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the image placeholder, which is added to the tokenizer where it is absent.

    The id may equal the language model's vocabulary size: it is never embedded nor predicted.
    """
    if IMAGE_TOKEN not in tokenizer.get_added_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    return tokenizer.get_added_vocab()[IMAGE_TOKEN]


@dataclass(frozen=True)
class Encoded:
    """A conversation in tokens."""

    ids: list[int]  # token ids, the image placeholder expanded
    is_target: list[bool]  # True where the token is learnt; as long as `ids`
    cut: int  # text tokens that were removed to meet the text limit


@dataclass(frozen=True)
class Limits:
    """The longest sequence and the largest id that a language model takes."""

    positions: int  # tokens of the longest sequence
    rows: int  # number of embeddings; ids from there on have none

    @classmethod
    def of(cls, model: Any) -> Limits:
        """The limits of a transformers model."""
        positions = int(getattr(model.config.get_text_config(), "max_position_embeddings", 2**31))
        return cls(positions, int(model.get_input_embeddings().weight.shape[0]))


@dataclass(frozen=True)
class _Draft:
    """A conversation in tokens with a single placeholder, at `image`, before the limit is applied."""

    ids: list[int]
    is_target: list[bool]
    image: int | None
    ends: list[int]  # text tokens up to the end of each answer

    @property
    def text_length(self) -> int:
        return len(self.ids) - (self.image is not None)


class ChatPrompt:
    """Writes conversations about one panorama in a language model's format.

    The image placeholder is added to the tokenizer; the other arguments are those of ``ChatFormat``.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None, today: date | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.image_id = add_image_token(tokenizer)
        self.format = ChatFormat(tokenizer, system, today)
        self._cache: dict[tuple[str, bool], list[int]] = {}
        # A literal "<image>" in a text is encoded in two parts: it never becomes the placeholder.
        self._literal_image = [
            token for part in ("<", "image>") for token in tokenizer(part, add_special_tokens=False)["input_ids"]
        ]
        marks = [
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.content != IMAGE_TOKEN and not (token.lstrip or token.single_word or token.normalized)
        ]
        alternatives = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
        self._marks = re.compile(alternatives or r"(?!)")

    def __repr__(self) -> str:
        """The tokenizer, the system text and the date."""
        name = self.tokenizer.name_or_path or type(self.tokenizer).__name__
        return f"ChatPrompt({name}, system={self.format.system!r}, date={self.format.date})"

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer: the tokenizer's EOS, and the template's end of turn if it is a token."""
        ids = [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]
        text = self.format.end.strip()
        end = self._token_ids(text, False)
        if end and end[0] not in ids and (len(end) == 1 or self._marks.match(text)):
            ids.append(end[0])
        return ids

    def control_tokens(self, text: str) -> list[str]:
        """Control tokens of the chat format in a text, such as ``<|im_end|>``, each once.

        They are the tokenizer's special tokens and other added ones that the template writes. The image placeholder
        is none, as it is encoded in parts.
        """
        written = self.format.render((("", ""), ("", "")), None).text
        added = self.tokenizer.added_tokens_decoder.values()
        control = {str(token) for token in added if token.special or str(token) in written} - {IMAGE_TOKEN}
        return sorted((token for token in control if token in text), key=text.index)

    def misfit(self, encoded: Encoded, limits: Limits, new_tokens: int = 0) -> str:
        """Why a language model cannot take a text and answer it; empty where it can."""
        length = len(encoded.ids)
        if length + new_tokens > limits.positions:
            new = f" and up to {new_tokens} new ones" if new_tokens else ""
            return (
                f"{length} tokens ({encoded.ids.count(self.image_id)} of them the panorama's){new} are more than the "
                f"language model's {limits.positions} positions"
            )
        unknown = {token for token in encoded.ids if token >= limits.rows and token != self.image_id}
        names = ", ".join(map(str, self.tokenizer.convert_ids_to_tokens(sorted(unknown))))
        return f"the language model has {limits.rows} embeddings and none for {names}" if unknown else ""

    def encode(
        self,
        turns: Turns,
        *,
        image_tokens: int,
        max_text_length: int | None = None,
        targets: Literal["text", "assistant"] = "assistant",
    ) -> Encoded:
        """Encodes a conversation; surrounding white space of its texts is dropped.

        Args:
            turns: (question, answer) pairs; after a last answer of None the result ends with the generation prompt.
            image_tokens: tokens of the panorama, placed in the first user turn; 0 for a conversation without.
            max_text_length: limit for all tokens but those of the panorama. For training, whole trailing
                turns go first, then the end of the only one left; a generation prompt loses its oldest turns.
            targets: what is learnt: `assistant`, the answers with their end-of-turn token; `text`, everything
                after the panorama.

        Raises:
            ValueError: an answer is missing in mid-conversation, or the last question alone is too long.
        """
        if not turns or any(answer is None for _, answer in turns[:-1]):
            raise ValueError("A conversation needs at least one turn, and only its last answer may be missing.")
        draft = self._draft(turns, image_tokens > 0, targets)
        full_length = draft.text_length
        if max_text_length is not None and full_length > max_text_length:
            if turns[-1][1] is None:
                draft = self._drop_oldest(turns, draft, image_tokens > 0, targets, max_text_length)
            else:
                draft = self._drop_newest(draft, max_text_length)
        ids, is_target = draft.ids, draft.is_target
        if (at := draft.image) is not None:
            ids = ids[:at] + [self.image_id] * image_tokens + ids[at + 1 :]
            is_target = is_target[:at] + [False] * image_tokens + is_target[at + 1 :]
        return Encoded(ids, is_target, full_length - draft.text_length)

    def _drop_newest(self, full: _Draft, limit: int) -> _Draft:
        # Later turns change nothing before them, so whole turns are cut off where they end.
        kept = max((end for end in full.ends if end <= limit), default=limit)
        places = [at for at in range(len(full.ids)) if at != full.image][:kept]
        places = sorted(places if full.image is None else [*places, full.image])
        image = None if full.image is None else places.index(full.image)
        return _Draft([full.ids[at] for at in places], [full.is_target[at] for at in places], image, [kept])

    def _drop_oldest(self, turns: Turns, full: _Draft, image: bool, targets: str, limit: int) -> _Draft:
        drafts: dict[int, _Draft] = {0: full}

        def fits(dropped: int) -> bool:
            drafts[dropped] = self._draft(turns[dropped:], image, targets)
            return drafts[dropped].text_length <= limit

        # Fewer turns are shorter, so the first number of dropped ones that fits is found by bisection.
        dropped = bisect_left(range(1, len(turns)), True, key=fits) + 1
        if dropped < len(turns):
            return drafts[dropped]
        draft = drafts[len(turns) - 1]
        raise ValueError(
            f"The last question takes {draft.text_length} text tokens with its chat format and the text "
            f"limit is {limit}. A prompt is never cut at its end: shorten it or raise max_text_length."
        )

    def _draft(self, turns: Turns, image: bool, targets: str) -> _Draft:
        rendered = self.format.render(turns, IMAGE_TOKEN if image else None)
        edges = [edge for span in rendered.answers for edge in span]
        ids, cuts = self._tokenise(rendered.text, edges, rendered.placeholder)
        token_spans = list(zip(cuts[::2], cuts[1::2], strict=True))
        at = None if rendered.placeholder is None else ids.index(self.image_id)
        spans = [(0 if at is None else at + 1, len(ids))] if targets == "text" else token_spans
        learnt = {place for start, stop in spans for place in range(start, stop)}
        is_target = [place in learnt for place in range(len(ids))]
        return _Draft(ids, is_target, at, [stop - (at is not None) for _, stop in token_spans])

    def _tokenise(self, text: str, cuts: list[int], image_at: int | None) -> tuple[list[int], list[int]]:
        """Token ids, and the number of tokens before each of the character positions `cuts` (ascending)."""
        edges = {0, len(text), image_at or 0, *(match.start() for match in self._marks.finditer(text))}
        ids: list[int] = []
        positions: list[int] = []
        for start, stop in pairwise(sorted(edges)):
            inside = [cut - start for cut in cuts if start < cut <= stop or cut == start == 0]
            piece, before = self._piece(text[start:stop], inside, start == image_at)
            positions += [len(ids) + tokens for tokens in before]
            ids += piece
        return ids, positions

    def _piece(self, text: str, cuts: list[int], image: bool) -> tuple[list[int], list[int]]:
        ids = self._token_ids(text, image)
        before: list[int] = []
        for number, cut in enumerate(cuts):
            head = self._token_ids(text[:cut], image)
            if ids[: len(head)] != head:
                # A token would span the prompt's end and the answer's start, where no generation could begin.
                left, early = self._piece(text[:cut], cuts[:number], image)
                right, late = self._piece(text[cut:], [later - cut for later in cuts[number + 1 :]], False)
                return left + right, [*early, len(left), *(len(left) + tokens for tokens in late)]
            before.append(len(head))
        return ids, before

    def _token_ids(self, text: str, image: bool) -> list[int]:
        if not text:
            return []
        known = self._cache.get((text, image))
        if known is None:
            # Not verbose, as it would warn of a length that is cut only later.
            raw = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            known = [self.image_id] if image else []
            for token in raw[1:] if image else raw:
                known += self._literal_image if token == self.image_id else [int(token)]
            if len(self._cache) >= _REMEMBERED_PIECES:
                self._cache.clear()
            self._cache[(text, image)] = known
        return known
