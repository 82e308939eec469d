"""Metrics of answers to typed questions: of each question, of each type, and a mean over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from raft_peft.metrics import distribution_metrics, mae, pearson, qwk, rmse, spearman

# More questions than these are not listed one by one: their ids are not those of questions asked again and again.
_MOST_QUESTIONS = 50
_BINS = 10


@dataclass(frozen=True)
class AnsweredQuestions:
    """Questions that have a target, and their answers.

    Attributes:
        ids, types: of each question, of length (questions).
        values: the numbers of its options; their places where it is a choice.
        log_probs: of its options, over the whole vocabulary, in nats, -inf on padding, of shape (questions, options).
        shares: the target as shares of its options, of shape (questions, options).
        labels: the mean of the target, of shape (questions,); of no meaning where it is a choice.
    """

    ids: Sequence[str]
    types: Sequence[str]
    values: Sequence[tuple[float, ...]]
    log_probs: np.ndarray
    shares: np.ndarray
    labels: np.ndarray

    def those(self, names: Sequence[str], name: str) -> AnsweredQuestions:
        """Those of one name, where each has one."""
        rows = [row for row, own in enumerate(names) if own == name]
        return AnsweredQuestions(
            [self.ids[row] for row in rows],
            [self.types[row] for row in rows],
            [self.values[row] for row in rows],
            self.log_probs[rows],
            self.shares[rows],
            self.labels[rows],
        )

    def metrics(self) -> dict[str, float]:
        """The metrics of each question that is asked in several rows, as `ID_NAME`; of each type, as `TYPE_NAME`; and
        `macro_nll`, the mean of `nll` over the questions, or over the types where no question is asked again.

        Each question has `nll`, the cross-entropy of its target in nats; `kl`, this less the entropy of the target;
        `brier`, the sum of the squared errors of the probabilities; `accuracy`, how often the likeliest option is that
        of the target; `label_mass`, the probability of all options over the whole vocabulary; and `ece`, the expected
        calibration error of the likeliest option. Scores and numbers have `rmse`, `mae`, `pearson` and `spearman` of
        the expected value too, and where all rows have the same levels `qwk` and `calibration_error`; questions of yes
        and no `auc`, where all targets are one of these and both occur. Probabilities are given the options, but for
        `label_mass`.
        """
        by_question, by_type = self.by_question(), self.by_type()
        named = {
            f"{name}_{metric}": value
            for group in (by_type, by_question)
            for name, metrics in group.items()
            for metric, value in metrics.items()
        }
        return {**named, "macro_nll": float(np.mean([one["nll"] for one in (by_question or by_type).values()]))}

    def by_question(self) -> dict[str, dict[str, float]]:
        """The metrics of each question that is asked in several rows, by its id; of none where these are many."""
        again = [one for one in dict.fromkeys(self.ids) if list(self.ids).count(one) > 1]
        again = again if len(again) <= _MOST_QUESTIONS else []
        return {one: _metrics(self.those(self.ids, one)) for one in again}

    def expected(self) -> np.ndarray:
        """The expected values given the options, of shape (questions,); of no meaning for choices."""
        probs = special.softmax(self.log_probs.astype(np.float64), axis=-1)
        return np.array([one[: len(own)] @ np.array(own) for one, own in zip(probs, self.values, strict=True)])

    def by_type(self) -> dict[str, dict[str, float]]:
        """The metrics of the questions of each type."""
        return {one: _metrics(self.those(self.types, one)) for one in dict.fromkeys(self.types)}


def _metrics(asked: AnsweredQuestions) -> dict[str, float]:
    """The metrics of questions of one type."""
    log_probs = special.log_softmax(asked.log_probs.astype(np.float64), axis=-1)
    probs, shares = np.exp(log_probs), asked.shares
    # A target has no share of padding, whose logarithm is that of 0.
    nll = -np.where(shares > 0, shares * np.where(np.isfinite(log_probs), log_probs, 0), 0).sum(-1)
    nll = np.where(((shares > 0) & ~np.isfinite(log_probs)).any(-1), np.inf, nll)
    correct = probs.argmax(-1) == shares.argmax(-1)
    metrics = {
        "nll": float(nll.mean()),
        "kl": float((nll - special.entr(shares).sum(-1)).mean()),
        "brier": float(((probs - shares) ** 2).sum(-1).mean()),
        "accuracy": float(correct.mean()),
        "ece": _calibration_error(probs.max(-1), correct),
        "label_mass": float(np.exp(asked.log_probs.astype(np.float64)).sum(-1).mean()),
    }
    kind = asked.types[0]
    if kind == "choice":
        return metrics
    expected = asked.expected()
    if kind == "predicate":
        yes = asked.labels > 0.5
        if set(asked.labels.tolist()) == {0.0, 1.0}:
            from sklearn.metrics import roc_auc_score

            metrics["auc"] = float(roc_auc_score(yes, expected))
        return metrics
    metrics |= {metric.__name__: metric(expected, asked.labels) for metric in (rmse, mae)}
    if len(expected) > 1:
        metrics |= {metric.__name__: metric(expected, asked.labels) for metric in (pearson, spearman)}
    if len(set(asked.values)) == 1:
        own = asked.values[0]
        metrics["qwk"] = qwk(expected, asked.labels, own)
        found = distribution_metrics(asked.log_probs[:, : len(own)], own, shares[:, : len(own)])
        metrics["calibration_error"] = found["calibration_error"]
    return metrics


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The mean distance, over bins of confidence, between how sure answers are and how often they are right."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [abs(confidence[bins == one].sum() - correct[bins == one].sum()) for one in np.unique(bins)]
    return float(sum(gaps) / len(confidence))
