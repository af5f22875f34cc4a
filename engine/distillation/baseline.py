"""What a user would reach for instead: the majority class, and logistic regression on TF-IDF."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter

from engine.metrics import macro_f1
from engine.types import Sample

C_GRID = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Inverse regularisation strengths tried on validation, around scikit-learn's 1; the strongest wins a tie."""


def majority(train: Sequence[Sample], n: int) -> list[str]:
    """The commonest training label, `n` times; of equally common ones the first in sorted order.

    Raises `ValueError` when there are no training rows.
    """
    if not train:
        raise ValueError("a baseline needs training rows")
    counts = Counter(sample.label for sample in train)
    return [min(counts, key=lambda label: (-counts[label], label))] * n


def tfidf_logreg(
    train: Sequence[Sample],
    validation: Sequence[Sample],
    test_texts: Sequence[str],
    labels: Sequence[str],
    *,
    seed: int,
) -> list[str]:
    """Predictions for `test_texts`, in their order, of TF-IDF with logistic regression fitted on `train`.

    Features are words and pairs of words that occur in at least 2 training texts, with sublinear term
    frequency. Classes are weighted to balance. C comes from `C_GRID` by macro-F1 on `validation` (without
    validation rows: 1). Where there is nothing to learn (one label, or no word occurs twice) it falls back to
    the majority class. The order of the rows does not matter: they are sorted by sample id.

    Raises `ValueError` when there are no training rows, or a validation label is not in `labels`.
    """
    # scikit-learn takes a second to import and is needed only here
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    fallback = majority(train, len(test_texts))
    train = sorted(train, key=attrgetter("id"))
    validation = sorted(validation, key=attrgetter("id"))
    gold = [sample.label for sample in train]
    if len(set(gold)) < 2 or not test_texts:
        return fallback
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    try:
        features = vectorizer.fit_transform([sample.text for sample in train])
    except ValueError:
        # scikit-learn's way to say that no term is left; texts are strings, so nothing else can be wrong
        return fallback
    held_out = vectorizer.transform([sample.text for sample in validation]) if validation else None
    asked = vectorizer.transform(test_texts)

    best, predictions = -1.0, fallback
    # the sparse products use one thread whatever the limit; BLAS threads would spin, at 4 times the CPU time
    with threadpool_limits(limits=1, user_api="blas"):
        for c in C_GRID if validation else (1.0,):
            # the loss is smooth and convex: a few hundred iterations do, and the limit never warns
            model = LogisticRegression(C=c, class_weight="balanced", max_iter=5_000, random_state=seed)
            model.fit(features, gold)
            found = 0.0
            if held_out is not None:
                answers = [str(label) for label in model.predict(held_out)]
                found = macro_f1([sample.label for sample in validation], answers, labels)
            if found > best:
                best, predictions = found, [str(label) for label in model.predict(asked)]
    return predictions
