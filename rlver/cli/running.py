"""The progress of a benchmark: dialogues, mean score, failures, cost and time left."""

from __future__ import annotations

from types import TracebackType

from rlver.cli.progress import Steps
from rlver.evaluation.benchmark import HUMAN
from rlver.evaluation.suite import Progress
from rlver.llm.usage import Prices, Usage, add


class BenchmarkProgress:
    """Shows the progress of each entry of a benchmark. Use it in a `with` statement."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._steps: Steps | None = None
        self._label = ""

    def __enter__(self) -> BenchmarkProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._steps is not None:
            self._steps.__exit__(kind, error, trace)

    def update(self, progress: Progress) -> None:
        """Count a dialogue that has ended."""
        if progress.label == HUMAN:  # a bar would disturb the dialogue at the terminal
            return
        if self._steps is None or progress.label != self._label:
            self.__exit__(None, None, None)
            self._label, self._steps = progress.label, Steps(progress.label)
            self._steps.__enter__()
            self._total_score = 0.0
            self._scored = self._failed = 0
            self._usage: Usage = {}
        transcript = progress.dialogue.transcript
        if transcript.stop.scored:
            self._scored += 1
            self._total_score += transcript.score
        else:
            self._failed += 1
        add(self._usage, progress.dialogue.usage)
        self._steps.update(progress.done, progress.total, self._note())

    def _note(self) -> str:
        parts = [f"mean {self._total_score / self._scored:.1f}"] if self._scored else []
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._usage:
            cost = self._prices.cost(self._usage)
            parts.append("cost unknown" if cost is None else f"${cost:.2f}")
        return ", ".join(parts)
