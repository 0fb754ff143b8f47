"""Compares the act tagger with human labels: the eight strategies of ESConv (Liu et al., ACL 2021).

A human labels a reply with one strategy, whereas the tagger finds any number of acts, and the two vocabularies differ.
So a strategy is predicted from the acts. The lexicon also lists weaker signs of each strategy, and a small table of
weights says how strongly every act, sign and circumstance indicates each strategy. The table is fitted to labelled
replies, deterministically.

Shape suffixes: N replies, F features, S strategies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlver.core.data import read_text, read_yaml
from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects
from rlver.core.profile import Frozen
from rlver.text.words import sentences
from rlver.users.embedded.acts import tag

STRATEGIES = (
    "Questions",
    "Restatement or Paraphrasing",
    "Reflection of feelings",
    "Self-disclosure",
    "Affirmation and Reassurance",
    "Providing Suggestions",
    "Information",
    "Other",
)
UNMAPPED = "Other"
"""Strategy of a reply without any act or sign, such as a greeting or thanks."""

_CIRCUMSTANCES = (
    "three words at most", "six words at most", "twelve words at most", "more than 25 words", "more than 40 words",
    "several sentences", "more than two sentences", "asks", "was asked", "the person thanks or leaves",
    "the person greets", "the person wants advice", "the person has not spoken", "goes on after own reply",
    "the person said little", "the person said much", "says I more than you", "says you", "never says you", "exclaims",
    "speaks of third persons",
)  # fmt: skip
_FOLDS = 5
_SHRINKAGE = 4.0
_STEPS = 300


class LabelledReply(NamedTuple):
    """A supporter's reply, the messages before it, and its human label."""

    reply: str
    strategy: str
    context: tuple[tuple[str, str], ...]
    """(role, text) of the messages before it. It may be empty."""


class Table(Frozen):
    """How strongly each feature indicates each strategy."""

    provenance: str
    weights: dict[str, tuple[float, ...]]
    """Weights by feature: one number per strategy, in the order of `STRATEGIES`."""


@cache
def _signs() -> tuple[tuple[str, re.Pattern[str]], ...]:
    signs = read_yaml("rlver.users.embedded", "data/lexicon.en.yaml")["signs"]
    return tuple(
        (f"{strategy} {number}", re.compile(pattern, re.IGNORECASE))
        for strategy, patterns in signs.items()
        for number, pattern in enumerate(patterns, 1)
    )


def features(labelled: LabelledReply) -> dict[str, float]:
    """The features of a reply, each 1.0: acts, signs anywhere, signs in the first sentence, circumstances."""
    parts = sentences(labelled.reply) or [labelled.reply]
    present: dict[str, float] = {f"act: {act}": 1.0 for act in tag(labelled.reply, "en").acts}
    for name, pattern in _signs():
        if any(pattern.search(sentence) for sentence in parts):
            present[f"sign: {name}"] = 1.0
        if pattern.search(parts[0]):
            present[f"first: {name}"] = 1.0
    last = next((text for role, text in reversed(labelled.context) if role == "user"), "").lower()
    count, count_last = len(labelled.reply.split()), len(last.split())
    words = re.findall(r"[a-z]+", labelled.reply.lower())
    me = sum(word in ("i", "me", "my", "mine", "myself") for word in words)
    you = sum(word in ("you", "your", "yours", "yourself", "u") for word in words)
    circumstances = (
        count <= 3, count <= 6, count <= 12, count > 25, count > 40, len(parts) > 1, len(parts) > 2,
        "?" in labelled.reply, "?" in last, bool(re.search("thank|bye|you too|have a (good|great)", last)),
        bool(re.match(r"\W*(hi|hello|hey)\b", last)),
        bool(re.search("what should|how (do|can|should)|advice|help me|suggest", last)), not last,
        bool(labelled.context) and labelled.context[-1][0] == "assistant", count_last < 6, count_last > 25,
        me > you, you > 0, you == 0, "!" in labelled.reply,
        bool(re.search(r"\b(he|she|they|him|her|them|his|their)\b", labelled.reply.lower())),
    )  # fmt: skip
    present |= {name: 1.0 for name, holds in zip(_CIRCUMSTANCES, circumstances, strict=True) if holds}
    return present | {"always": 1.0}


@cache
def default_table() -> Table:
    """The table that ships with the package."""
    return Table.model_validate_json(read_text("rlver.users.calibration", "data/strategies.json"))


def strategy(labelled: LabelledReply, table: Table | None = None) -> str:
    """The predicted strategy of a reply: the one with the largest sum of weights, or `UNMAPPED`.

    Args:
        table: by default the one that ships with the package.
    """
    present = features(labelled)
    if not any(name.startswith(("act: ", "sign: ")) for name in present):
        return UNMAPPED
    weights = (table or default_table()).weights
    sums = [0.0] * len(STRATEGIES)
    for name in present:
        for k, weight in enumerate(weights.get(name, ())):
            sums[k] += weight
    return STRATEGIES[max(range(len(sums)), key=sums.__getitem__)]


def fit_table(labelled: Sequence[LabelledReply], provenance: str = "") -> Table:
    """Fit a table: softmax regression with an L2 penalty, in which rare strategies weigh more."""
    features_of = [features(reply) for reply in labelled]
    names = sorted({name for present in features_of for name in present})
    column = {name: i for i, name in enumerate(names)}
    X_NF = np.zeros((len(labelled), len(names)))
    for row, present in enumerate(features_of):
        X_NF[row, [column[name] for name in present]] = 1.0
    label_N = np.array([STRATEGIES.index(reply.strategy) for reply in labelled])
    counts_S = np.maximum(1, np.bincount(label_N, minlength=len(STRATEGIES)))
    weight_N1 = np.sqrt(len(label_N) / len(STRATEGIES) / counts_S)[label_N][:, None]
    target_NS = np.eye(len(STRATEGIES))[label_N]
    rate = 1 / (np.linalg.norm(X_NF, 2) ** 2 * weight_N1.max() / 2 + _SHRINKAGE)
    weights_FS = lookahead_FS = np.zeros((len(names), len(STRATEGIES)))
    momentum = 1.0
    for _ in range(_STEPS):  # Nesterov's accelerated gradient
        logits_NS = X_NF @ lookahead_FS
        share_NS = np.exp(logits_NS - logits_NS.max(1, keepdims=True))
        share_NS /= share_NS.sum(1, keepdims=True)
        gradient_FS = X_NF.T @ ((share_NS - target_NS) * weight_N1) + _SHRINKAGE * lookahead_FS
        next_FS = lookahead_FS - rate * gradient_FS
        next_momentum = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        lookahead_FS = next_FS + (momentum - 1) / next_momentum * (next_FS - weights_FS)
        weights_FS, momentum = next_FS, next_momentum
    rounded = {name: tuple(round(float(value), 3) for value in weights_FS[i]) for name, i in column.items()}
    return Table(provenance=provenance, weights=rounded)


def read_labelled(path: Path) -> list[LabelledReply]:
    """Read labelled replies from a JSONL file with the fields `reply`, `strategy` and optionally `context`.

    `context` is the list of messages before the reply.

    Raises:
        RlverError: a field is missing or a strategy is unknown. The message names file and line.
    """
    labelled = []
    for where, record in read_objects(path):
        reply, label, context = record.get("reply"), record.get("strategy"), record.get("context") or []
        if not isinstance(reply, str) or label not in STRATEGIES:
            raise RlverError(f"{where}: expected a 'reply' and a 'strategy', one of: {', '.join(STRATEGIES)}.")
        try:
            messages = tuple((str(message["role"]), str(message["content"])) for message in context)
        except (TypeError, KeyError):
            raise RlverError(f"{where}: 'context' must be a list of messages with 'role' and 'content'.") from None
        labelled.append(LabelledReply(reply, label, messages))
    if not labelled:
        raise RlverError(f"{path}: this file holds no labelled replies.")
    return labelled


def agreement(labelled: Sequence[LabelledReply]) -> dict[str, Any]:
    """Agreement of predicted strategies with human labels. See `compare` for the measures.

    The main figures use the shipped table. `held_out` uses tables that were fitted to four fifths of the dialogues and
    applied to the rest. It is the honest figure if the shipped table was fitted to the same labels.
    """
    labels = [reply.strategy for reply in labelled]
    report = compare(labels, [strategy(reply) for reply in labelled])
    dialogue_of = _dialogue_numbers(labelled)
    if dialogue_of[-1] + 1 >= 2 * _FOLDS:
        held_out = [""] * len(labelled)
        for fold in range(_FOLDS):
            table = fit_table([reply for reply, d in zip(labelled, dialogue_of, strict=True) if d % _FOLDS != fold])
            for i, reply in enumerate(labelled):
                if dialogue_of[i] % _FOLDS == fold:
                    held_out[i] = strategy(reply, table)
        report["held_out"] = compare(labels, held_out)
    return report


def compare(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro-F1 over the strategies that occur, Cohen's kappa, and the figures of each strategy."""
    n = len(labels)
    hits = Counter(label for label, guess in zip(labels, predicted, strict=True) if label == guess)
    labelled, guessed = Counter(labels), Counter(predicted)
    accuracy = sum(hits.values()) / n
    chance = sum(labelled[s] * guessed[s] for s in STRATEGIES) / n**2
    by_strategy = {
        s: {
            "n": labelled[s],
            "precision": hits[s] / guessed[s] if guessed[s] else 0.0,
            "recall": hits[s] / labelled[s],
            "f1": 2 * hits[s] / (guessed[s] + labelled[s]),
        }
        for s in STRATEGIES
        if labelled[s]
    }
    return {
        "n": n,
        "accuracy": accuracy,
        "macro_f1": sum(part["f1"] for part in by_strategy.values()) / len(by_strategy),
        "kappa": (accuracy - chance) / (1 - chance) if chance < 1 else 0.0,
        "by_strategy": by_strategy,
    }


def _dialogue_numbers(labelled: Sequence[LabelledReply]) -> list[int]:
    """Number of each reply's dialogue. A reply with at most one message before it begins a new dialogue."""
    numbers, number = [], -1
    for reply in labelled:
        if len(reply.context) <= 1 or number < 0:
            number += 1
        numbers.append(number)
    return numbers
