"""The act tagger against people: the eight strategies of ESConv (Liu et al., ACL 2021) as its supporters labelled them.

People put one label on a reply, our tagger finds any number of acts, and the two vocabularies cut the world
differently. What is compared is therefore a reading: each act has the strategy that people would file it under
(`STRATEGY_OF`), the lexicon lists weaker signs of each strategy, and a small table of weights, fitted to labelled
replies, says how much every act, sign and circumstance speaks for each strategy. Fitting is deterministic.

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
STRATEGY_OF: dict[str, str] = {
    "question": "Questions",
    "reflect": "Questions",
    "restate": "Restatement or Paraphrasing",
    "empathise": "Reflection of feelings",
    "disclose": "Self-disclosure",
    "praise": "Affirmation and Reassurance",
    "absolve": "Affirmation and Reassurance",
    "comfort": "Affirmation and Reassurance",
    "listen": "Affirmation and Reassurance",
    "advise": "Providing Suggestions",
    "refer": "Providing Suggestions",
    "motives": "Information",
    "weigh": "Information",
}
"""Our acts and the strategies that people would file them under. To explain others or weigh sides is to tell the person
something about the matter; a question that makes one look at oneself is a question."""
UNMAPPED = "Other"
"""What a reply with no act and no sign counts as: greetings, thanks, small talk."""

_CIRCUMSTANCES = (
    "three words at most", "six words at most", "twelve words at most", "more than 25 words", "more than 40 words",
    "several sentences", "more than two sentences", "asks", "was asked", "the person thanks or leaves",
    "the person greets", "the person wants advice", "the person has not spoken", "goes on after own reply",
    "the person said little", "the person said much", "says I more than you", "says you", "never says you", "exclaims",
    "speaks of third persons",
)  # fmt: skip
_FOLDS = 5
_SHRINK = 4.0
_STEPS = 300


class Labelled(NamedTuple):
    """A supporter's reply, what was said before it, and the label that people gave it."""

    reply: str
    strategy: str
    context: tuple[tuple[str, str], ...]
    """(role, text) of the messages before it; may be empty."""


class Table(Frozen):
    """How much each feature speaks for each strategy."""

    provenance: str
    weights: dict[str, tuple[float, ...]]
    """By feature, one number a strategy, in the order of `STRATEGIES`."""


@cache
def _signs() -> tuple[tuple[str, re.Pattern[str]], ...]:
    signs = read_yaml("rlver.users.embedded", "data/lexicon.en.yaml")["signs"]
    return tuple(
        (f"{strategy} {number}", re.compile(pattern, re.IGNORECASE))
        for strategy, patterns in signs.items()
        for number, pattern in enumerate(patterns, 1)
    )


def features(labelled: Labelled) -> dict[str, float]:
    """What speaks for one strategy or another: acts, signs anywhere and at the start, circumstances."""
    said = sentences(labelled.reply) or [labelled.reply]
    found: dict[str, float] = {f"act: {act}": 1.0 for act in tag(labelled.reply, "en").acts}
    for name, pattern in _signs():
        if any(pattern.search(sentence) for sentence in said):
            found[f"sign: {name}"] = 1.0
        if pattern.search(said[0]):
            found[f"first: {name}"] = 1.0
    last = next((text for role, text in reversed(labelled.context) if role == "user"), "").lower()
    count, heard = len(labelled.reply.split()), len(last.split())
    spoken = re.findall(r"[a-z]+", labelled.reply.lower())
    me = sum(word in ("i", "me", "my", "mine", "myself") for word in spoken)
    you = sum(word in ("you", "your", "yours", "yourself", "u") for word in spoken)
    circumstances = (
        count <= 3, count <= 6, count <= 12, count > 25, count > 40, len(said) > 1, len(said) > 2,
        "?" in labelled.reply, "?" in last, bool(re.search("thank|bye|you too|have a (good|great)", last)),
        bool(re.match(r"\W*(hi|hello|hey)\b", last)),
        bool(re.search("what should|how (do|can|should)|advice|help me|suggest", last)), not last,
        bool(labelled.context) and labelled.context[-1][0] == "assistant", heard < 6, heard > 25,
        me > you, you > 0, you == 0, "!" in labelled.reply,
        bool(re.search(r"\b(he|she|they|him|her|them|his|their)\b", labelled.reply.lower())),
    )  # fmt: skip
    found |= {name: 1.0 for name, holds in zip(_CIRCUMSTANCES, circumstances, strict=True) if holds}
    return found | {"always": 1.0}


@cache
def default_table() -> Table:
    """The table that ships with the package."""
    return Table.model_validate_json(read_text("rlver.users.calibration", "data/strategies.json"))


def strategy(labelled: Labelled, table: Table | None = None) -> str:
    """The strategy that speaks loudest; `UNMAPPED` for a reply with neither act nor sign."""
    found = features(labelled)
    if not any(name.startswith(("act: ", "sign: ")) for name in found):
        return UNMAPPED
    weights = (table or default_table()).weights
    sums = [0.0] * len(STRATEGIES)
    for name in found:
        for k, weight in enumerate(weights.get(name, ())):
            sums[k] += weight
    return STRATEGIES[max(range(len(sums)), key=sums.__getitem__)]


def fit_table(labelled: Sequence[Labelled], provenance: str = "") -> Table:
    """Fit the table: softmax regression, shrunk to zero, rare strategies weighing more."""
    seen = [features(one) for one in labelled]
    names = sorted({name for one in seen for name in one})
    place = {name: i for i, name in enumerate(names)}
    X_NF = np.zeros((len(seen), len(names)))
    for row, one in enumerate(seen):
        X_NF[row, [place[name] for name in one]] = 1.0
    label_N = np.array([STRATEGIES.index(one.strategy) for one in labelled])
    counts_S = np.maximum(1, np.bincount(label_N, minlength=len(STRATEGIES)))
    weight_N1 = np.sqrt(len(label_N) / len(STRATEGIES) / counts_S)[label_N][:, None]
    target_NS = np.eye(len(STRATEGIES))[label_N]
    rate = 1 / (np.linalg.norm(X_NF, 2) ** 2 * weight_N1.max() / 2 + _SHRINK)
    now_FS = ahead_FS = np.zeros((len(names), len(STRATEGIES)))
    pace = 1.0
    for _ in range(_STEPS):  # Nesterov's accelerated gradient
        logits_NS = X_NF @ ahead_FS
        share_NS = np.exp(logits_NS - logits_NS.max(1, keepdims=True))
        share_NS /= share_NS.sum(1, keepdims=True)
        gradient_FS = X_NF.T @ ((share_NS - target_NS) * weight_N1) + _SHRINK * ahead_FS
        after_FS = ahead_FS - rate * gradient_FS
        faster = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        ahead_FS = after_FS + (pace - 1) / faster * (after_FS - now_FS)
        now_FS, pace = after_FS, faster
    rounded = {name: tuple(round(float(value), 3) for value in now_FS[i]) for name, i in place.items()}
    return Table(provenance=provenance, weights=rounded)


def read_labelled(path: Path) -> list[Labelled]:
    """The labelled replies of a JSONL file: `reply`, `strategy` and, if at hand, `context` (messages before it).

    Raises:
        RlverError: a field is missing or a strategy is none of the eight; the message names file and line.
    """
    labelled = []
    for where, record in read_objects(path):
        reply, label, context = record.get("reply"), record.get("strategy"), record.get("context") or []
        if not isinstance(reply, str) or label not in STRATEGIES:
            raise RlverError(f"{where}: expected a 'reply' and a 'strategy', one of: {', '.join(STRATEGIES)}.")
        try:
            before = tuple((str(message["role"]), str(message["content"])) for message in context)
        except (TypeError, KeyError):
            raise RlverError(f"{where}: 'context' must be a list of messages with 'role' and 'content'.") from None
        labelled.append(Labelled(reply, label, before))
    if not labelled:
        raise RlverError(f"{path}: no labelled replies in this file.")
    return labelled


def agreement(labelled: Sequence[Labelled]) -> dict[str, Any]:
    """Agreement of the shipped reading with the labels, and, in `held_out`, of tables fitted to four fifths of the
    dialogues and asked about the rest: the honest figure where the shipped one was fitted to these very labels."""
    truth = [one.strategy for one in labelled]
    found = compare(truth, [strategy(one) for one in labelled])
    dialogue = _dialogues(labelled)
    if dialogue[-1] + 1 >= 2 * _FOLDS:
        held = [""] * len(labelled)
        for fold in range(_FOLDS):
            table = fit_table([one for one, d in zip(labelled, dialogue, strict=True) if d % _FOLDS != fold])
            for i, one in enumerate(labelled):
                if dialogue[i] % _FOLDS == fold:
                    held[i] = strategy(one, table)
        found["held_out"] = compare(truth, held)
    return found


def compare(truth: Sequence[str], found: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro-F1 over the strategies that occur, Cohen's kappa, and the parts of each strategy."""
    n = len(truth)
    hits = Counter(t for t, f in zip(truth, found, strict=True) if t == f)
    of_truth, of_found = Counter(truth), Counter(found)
    accuracy = sum(hits.values()) / n
    chance = sum(of_truth[s] * of_found[s] for s in STRATEGIES) / n**2
    by_strategy = {
        s: {
            "n": of_truth[s],
            "precision": hits[s] / of_found[s] if of_found[s] else 0.0,
            "recall": hits[s] / of_truth[s],
            "f1": 2 * hits[s] / (of_found[s] + of_truth[s]),
        }
        for s in STRATEGIES
        if of_truth[s]
    }
    return {
        "n": n,
        "accuracy": accuracy,
        "macro_f1": sum(part["f1"] for part in by_strategy.values()) / len(by_strategy),
        "kappa": (accuracy - chance) / (1 - chance) if chance < 1 else 0.0,
        "by_strategy": by_strategy,
    }


def _dialogues(labelled: Sequence[Labelled]) -> list[int]:
    """A number for the dialogue of each reply; one with at most one message before it starts the next."""
    numbers, number = [], -1
    for one in labelled:
        if len(one.context) <= 1 or number < 0:
            number += 1
        numbers.append(number)
    return numbers
