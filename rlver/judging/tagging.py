"""The act tagger against people: the eight strategies of ESConv (Liu et al., ACL 2021) as labelled by supporters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlver.agents.acts import tag
from rlver.core.errors import RlverError
from rlver.core.jsonl import read_objects
from rlver.core.profile import Language

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
    "inform": "Information",
    "reflect": "Questions",
    "smalltalk": "Other",
}
"""Our acts and the strategy that people would file them under. Explaining others or weighing sides tells the person
something about the matter; a question that makes one look at oneself is a question."""
UNMAPPED = "Other"
"""A reply in which no act is seen counts as this: greetings, thanks, small talk."""

# Where several acts are seen, the rarer and more telling one is what people name; a question at the end of a
# reply is often only its opener for the next turn.
_PRECEDENCE = (
    "disclose", "inform", "advise", "refer", "empathise", "restate", "question", "reflect", "praise", "absolve",
    "comfort", "motives", "weigh", "listen", "smalltalk",
)  # fmt: skip


def strategy(reply: str, language: Language = "en") -> str:
    """The strategy of a reply: that of the act seen in most of its sentences, the more telling one of equals."""
    acts = tag(reply, language).acts
    known = [act for act in _PRECEDENCE if act in acts]
    if not known:
        return UNMAPPED
    return STRATEGY_OF[max(known, key=lambda act: (acts[act], -_PRECEDENCE.index(act)))]


def read_labelled(path: Path) -> list[tuple[str, str]]:
    """(reply, strategy) of every line of a JSONL file with these fields.

    Raises:
        RlverError: a field is missing or a strategy is none of the eight; the message names file and line.
    """
    labelled = []
    for where, record in read_objects(path):
        reply, label = record.get("reply"), record.get("strategy")
        if not isinstance(reply, str) or label not in STRATEGIES:
            raise RlverError(f"{where}: expected a 'reply' and a 'strategy', one of: {', '.join(STRATEGIES)}.")
        labelled.append((reply, label))
    if not labelled:
        raise RlverError(f"{path}: no labelled replies in this file.")
    return labelled


def agreement(labelled: Sequence[tuple[str, str]], language: Language = "en") -> dict[str, Any]:
    """Accuracy, macro-F1 over the strategies that occur, Cohen's kappa, and precision and recall of each."""
    truth = [label for _, label in labelled]
    found = [strategy(reply, language) for reply, _ in labelled]
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
