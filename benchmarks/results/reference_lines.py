"""What is known of rated texts without any training: a rater's agreement with the others, and the rules of VADER."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from raft_peft.metrics import mae, pearson, rmse, spearman

Ratings = Sequence[Sequence[float]]


def rater_line(ratings: Ratings) -> dict[str, float]:
    """One rater against the mean of the others, over all raters and rows.

    Each rating of a row is a pair with the mean of the row's other ratings. Rows count alike, however many raters they
    have: a pair has the weight 1 / raters. RMSE, MAE and Pearson's correlation are those of the weighted pairs.

    >>> rater_line([[1, 3], [4, 4]])
    {'rmse': 1.4142135623730951, 'mae': 1.0, 'pearson': 0.33333333333333337}

    Args:
        ratings: of each row, two or more.
    """
    alone = np.concatenate([np.asarray(row, dtype=float) for row in ratings])
    others = np.concatenate([(np.sum(row) - np.asarray(row, dtype=float)) / (len(row) - 1) for row in ratings])
    weights = np.concatenate([np.full(len(row), 1 / (len(row) * len(ratings))) for row in ratings])
    covariance = np.cov(alone, others, aweights=weights, ddof=0)
    return {
        "rmse": float(np.sqrt(weights @ (alone - others) ** 2)),
        "mae": float(weights @ np.abs(alone - others)),
        "pearson": float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])),
    }


def vader_scores(texts: Sequence[str]) -> np.ndarray:
    """The compound score of each text by VADER's rules, -1 to 1 (Hutto and Gilbert, ICWSM 2014)."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError:
        raise ModuleNotFoundError("The rules of VADER are missing. Run: pip install 'raft-peft[bench]'") from None
    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


def scored_line(
    train_texts: Sequence[str],
    train_labels: Sequence[float],
    texts: Sequence[str],
    labels: Sequence[float],
    score: Callable[[Sequence[str]], np.ndarray] = vader_scores,
) -> dict[str, float]:
    """Scores of texts as predictions of their labels, by the straight line that fits the training rows best.

    The line gives them the unit of the labels, and does not change their correlations.

    Args:
        train_texts, train_labels: what the line is fitted to.
        texts, labels: what is predicted.
        score: from texts to a number each.
    """
    slope, offset = np.polyfit(score(train_texts), train_labels, 1)
    predicted = slope * score(texts) + offset
    return {metric.__name__: metric(predicted, labels) for metric in (rmse, mae, pearson, spearman)}
