"""The model card: a page of Markdown with pictures that says what a model is and how good."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from classifier.model import Model
from classifier.training import Scores

CARD: Final = "model_card.md"
_IMPORTANT: Final = 25


def card_files(model: Model, scores: Scores, training_data: str) -> dict[str, bytes]:
    """Files of the card, by name: the page and its pictures.

    Parameters
    ----------
    model : Model
    scores : Scores
    training_data : str
        One or two sentences on what the model was trained on.
    """
    return {
        CARD: _page(model, scores, training_data).encode(),
        "confusion.png": _png(_confusion(scores)),
        "calibration.png": _png(_calibration(scores)),
        "importance.png": _png(_importance(scores)),
    }


def _page(model: Model, scores: Scores, training_data: str) -> str:
    recall = np.diag(scores.confusion) / np.maximum(scores.confusion.sum(axis=1), 1)
    precision = np.diag(scores.confusion) / np.maximum(scores.confusion.sum(axis=0), 1)
    classes = "\n".join(
        f"| {name} | {scores.counts[name]} | {scores.confusion[number].sum()} | {recall[number]:.2f} "
        f"| {precision[number]:.2f} |"
        for number, name in enumerate(scores.classes)
    )
    bags = "\n".join(f"| {name} | {value:.3f} |" for name, value in scores.out_of_bag.items())
    details = "\n".join(f"* {key}: {value}" for key, value in model.provenance.items())
    return f"""# {model.name} {model.version}

{training_data}

{len(model.leaves)} classes, {len(model.features)} features (mode `{model.feature_mode}`,
version `{model.feature_version or "not recorded"}`). {model.licence}

## How good it is

On {scores.confusion.sum()} objects that the training has not seen:

| accuracy | balanced accuracy | macro F1 | accuracy of the top level |
|---|---|---|---|
| {scores.accuracy:.3f} | {scores.balanced_accuracy:.3f} | {scores.macro_f1:.3f} | {scores.top_accuracy:.3f} |

| class | objects | held out | recall | precision |
|---|---|---|---|---|
{classes}

| forest | out-of-bag accuracy |
|---|---|
{bags}

![Objects by true and predicted class](confusion.png)

![How often the most probable class is right, by its probability](calibration.png)

![The most important features](importance.png)

## How it was made

{details}

## What to beware of

The probabilities are those of balanced forests: every class counts alike, however rare it is in the sky. They hold for
objects like those of the training; features computed in another mode or by another version give other results.
"""


def _confusion(scores: Scores) -> Figure:
    count = len(scores.classes)
    figure = Figure(figsize=(0.5 * count + 2.5, 0.5 * count + 1.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    share = scores.confusion / np.maximum(scores.confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row in range(count):
        for column in range(count):
            if scores.confusion[row, column]:
                colour = "white" if share[row, column] > 0.5 else "black"
                number = f"{share[row, column]:.2f}"
                axes.text(column, row, number, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(count), scores.classes, rotation=90)
    axes.set_yticks(range(count), scores.classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("Share of each true class")
    return figure


def _calibration(scores: Scores) -> Figure:
    best = scores.probabilities.argmax(axis=1)
    probability = scores.probabilities[np.arange(len(best)), best]
    right = best == scores.truth
    edges = np.linspace(0, 1, 11)
    where = np.clip(np.digitize(probability, edges) - 1, 0, 9)
    counts = np.bincount(where, minlength=10)
    filled = counts > 0
    means = np.bincount(where, probability, minlength=10)[filled] / counts[filled]
    shares = np.bincount(where, right, minlength=10)[filled] / counts[filled]
    errors = np.sqrt(shares * (1 - shares) / counts[filled])
    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="perfectly calibrated")
    axes.errorbar(means, shares, errors, fmt="o-", label="held-out objects")
    for x, y, number in zip(means, shares, counts[filled], strict=True):
        axes.annotate(f"{number}", (x, y), xytext=(6, -10), textcoords="offset points", fontsize=7)
    axes.set_xlabel("probability of the most probable class")
    axes.set_ylabel("share of objects for which it is right")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend()
    return figure


def _importance(scores: Scores) -> Figure:
    ordered = scores.importances.loc[scores.importances.mean(axis=1).sort_values(ascending=False).index]
    shown = ordered.head(_IMPORTANT).iloc[::-1]
    figure = Figure(figsize=(8, 0.25 * len(shown) + 1.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    left: Any = np.zeros(len(shown))
    for name in shown.columns:
        axes.barh(shown.index, shown[name] / len(shown.columns), left=left, label=name)
        left = left + shown[name] / len(shown.columns)
    axes.set_xlabel("mean decrease of impurity, mean over the forests")
    axes.legend(fontsize=8)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with rc_context():
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
