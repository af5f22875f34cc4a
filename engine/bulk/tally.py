"""Counts of rows: with and without a label, per label, per tenth of confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.bulk.entries import Entry

TENTHS = 10


class Tally:
    """What became of some rows. `histogram[k]` counts confidences from k/10 to (k+1)/10, 1.0 in the last one;
    rows whose student told none are in no tenth. `review` counts the labelled rows that are unsure: below
    `review_below`, or without a confidence; none where that is None. `cut` counts the labelled rows whose
    student has not seen the whole text.
    """

    __slots__ = ("_labels", "_review_below", "counts", "cut", "failed", "histogram", "review", "rows")

    def __init__(self, labels: Sequence[str], review_below: float | None = None) -> None:
        self._labels = labels
        self._review_below = review_below
        self.rows = 0
        self.failed = 0
        self.review = 0
        self.cut = 0
        self.counts = [0] * len(labels)
        self.histogram = [0] * TENTHS

    @property
    def classified(self) -> int:
        """Rows with a label."""
        return self.rows - self.failed

    @property
    def told(self) -> int:
        """Rows with a confidence."""
        return sum(self.histogram)

    @property
    def label_counts(self) -> dict[str, int]:
        """Rows per label, most frequent first, those without any left out."""
        found = {label: count for label, count in zip(self._labels, self.counts, strict=True) if count}
        return most_frequent_first(found)

    def count(self, entry: Entry) -> None:
        """Count one row."""
        self.rows += 1
        if len(entry) == 2:
            self.failed += 1
            return
        label, confidence, _, cut = entry
        self.counts[label] += 1
        self.cut += cut > 0
        if confidence == confidence:  # noqa: PLR0124 - not NaN
            self.histogram[min(TENTHS - 1, int(confidence * TENTHS))] += 1
        if self._review_below is not None and not confidence >= self._review_below:
            self.review += 1

    def add(
        self,
        *,
        rows: int,
        failed: int,
        review: int,
        cut: int,
        labels: Mapping[str, int],
        histogram: Sequence[int],
    ) -> None:
        """Count rows that were counted elsewhere."""
        self.rows += rows
        self.failed += failed
        self.review += review
        self.cut += cut
        for index, label in enumerate(self._labels):
            self.counts[index] += labels.get(label, 0)
        for tenth, count in enumerate(histogram):
            self.histogram[tenth] += count


def most_frequent_first(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts in falling order, equal ones by name."""
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
