"""A benchmark while it runs: the log fills, and count, mean, failures, cost and time left are shown."""

from __future__ import annotations

from pathlib import Path

from rlver.cli.progress import Steps
from rlver.core.emotion import Preset
from rlver.core.errors import RlverError
from rlver.core.interfaces import Policy, User
from rlver.core.profile import Profile
from rlver.evaluation.benchmark import Pace, list_jobs, run_to_log
from rlver.evaluation.log import LoggedDialogue, RunConfig, RunLog
from rlver.llm.usage import Prices, Usage, add

HUMAN = "human"


def fill(
    path: Path,
    config: RunConfig,
    resume: bool,
    who: Policy,
    agent: User,
    rules: Preset,
    profiles: list[Profile],
    repeats: int,
    pace: Pace,
    money: Prices,
) -> None:
    """Fill a log, with progress. Raises RlverError if an endpoint cannot be used; what is over is kept."""
    jobs = list_jobs(profiles, repeats, config.seed)
    with RunLog(path, config, resume) as log, Steps(who.spec) as steps:
        score = Running(steps, len(jobs), sum(job.key in log.scored for job in jobs), money, who.spec != HUMAN)
        try:
            run_to_log(jobs, who, agent, rules, pace, log, score.take)
        except RlverError as error:
            kept = f"{len(log.scored)} of {len(jobs)} dialogues are kept"
            raise RlverError(f"{str(error).rstrip('.')}; {kept} in {path}, go on with --resume.") from None


class Running:
    """The state of a benchmark while it runs: count, mean, failures and cost."""

    def __init__(self, steps: Steps, total: int, done: int, money: Prices, shown: bool) -> None:

        self._steps, self._total, self._done, self._money, self._shown = steps, total, done, money, shown
        self._scores = 0.0
        self._scored = self._failed = 0
        self._usage: Usage = {}

    def take(self, dialogue: LoggedDialogue) -> None:
        """Count a dialogue that is over."""

        self._done += 1
        if dialogue.transcript.stop.scored:
            self._scored += 1
            self._scores += dialogue.transcript.score
        else:
            self._failed += 1
        add(self._usage, dialogue.usage)
        if self._shown:
            self._steps.update(self._done, self._total, self._note())

    def _note(self) -> str:
        parts = [f"mean {self._scores / self._scored:.1f}"] if self._scored else []
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._usage:
            cost = self._money.cost(self._usage)
            parts.append("cost unknown" if cost is None else f"${cost:.2f}")
        return ", ".join(parts)
