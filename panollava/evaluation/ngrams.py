"""The n-grams of texts, counted once for all metrics that compare them.

Legend: ``Q`` answers.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

Counts = list[dict[int, int]]
"""For each order from 1 on: how often a text has each n-gram, in the order in which they first occur."""


class NGrams:
    """n-grams of 1 to ``order`` words, each as a number: numbers compare and hash faster than tuples of words."""

    def __init__(self, order: int) -> None:
        self.order = order
        self._words: dict[str, int] = {}
        self._numbers: dict[tuple[int, int], int] = {}  # (n-gram, word after it) -> n-gram of one word more
        self._counts: dict[str, Counts] = {}

    def counts(self, text: str) -> Counts:
        """The n-grams of a text of words that are separated by white space."""
        if (found := self._counts.get(text)) is None:
            found = self._counts[text] = self._counted(text)
        return found

    def _counted(self, text: str) -> Counts:
        words = [self._words.setdefault(word, len(self._words)) for word in text.split()]
        found: Counts = []
        numbers, ngrams = self._numbers, words
        for n in range(1, self.order + 1):
            if n > 1:
                pairs = zip(ngrams, words[n - 1 :], strict=False)
                ngrams = [numbers.setdefault(pair, len(numbers)) for pair in pairs]
            own: dict[int, int] = {}
            for ngram in ngrams:
                own[ngram] = own.get(ngram, 0) + 1
            found.append(own)
        return found


class ReferenceNGrams:
    """The n-grams of the references of ``Q`` answers; answers with the same references share theirs.

    Attributes:
        ngrams: of these and other texts.
        answers: number of answers with each tuple of references.
        highest: for each tuple, the n-grams with the highest count that any of its references has.
        frequencies: for each order, the number of answers whose references have an n-gram.
    """

    def __init__(self, references: Sequence[tuple[str, ...]], order: int) -> None:
        self.ngrams = NGrams(order)
        self.answers = Counter(references)
        self.highest = {each: self._highest(each) for each in self.answers}
        self.frequencies: Counts = [{} for _ in range(order)]
        for each, count in self.answers.items():
            for frequencies, own in zip(self.frequencies, self.highest[each], strict=True):
                for ngram in own:
                    frequencies[ngram] = frequencies.get(ngram, 0) + count

    @property
    def longest(self) -> int:
        """Words of the longest n-gram of any reference, at most ``order``."""
        return sum(map(bool, self.frequencies))

    def _highest(self, references: Iterable[str]) -> Counts:
        found: Counts = [{} for _ in range(self.ngrams.order)]
        for text in references:
            for highest, own in zip(found, self.ngrams.counts(text), strict=True):
                for ngram, count in own.items():
                    if highest.get(ngram, 0) < count:
                        highest[ngram] = count
        return found
