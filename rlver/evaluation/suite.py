"""The benchmark of one or several policies, with a log for each policy and one table for all."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rlver.core.data import digest
from rlver.core.emotion import Preset
from rlver.core.errors import RlverError
from rlver.core.interfaces import Policy, User
from rlver.core.profile import Profile
from rlver.core.transcript import Transcript
from rlver.evaluation.benchmark import Pace, list_jobs, pace_for, run_to_log
from rlver.evaluation.fluency import FluencyCheck, replies_of
from rlver.evaluation.log import LoggedDialogue, RunConfig, RunLog, read_log
from rlver.evaluation.results import BenchmarkResults, PolicyResult, Sampling, assess
from rlver.llm.usage import Prices, Usage, add
from rlver.version import revision, version


@dataclass(frozen=True)
class Entry:
    """One row of a benchmark: a policy, the user that it meets, and the profiles of that user."""

    policy: Policy
    user: User
    profiles: Sequence[Profile]
    """At least one profile, all of them in the same language."""
    name: str = ""
    """Name in the table; empty means the policy's spec."""

    @property
    def label(self) -> str:
        """The name, or the policy's spec if there is none."""
        return self.name or self.policy.spec


@dataclass(frozen=True)
class Progress:
    """The state of a benchmark when a dialogue has ended."""

    label: str
    """Label of the current entry."""
    done: int
    """Number of the entry's dialogues that have ended, including those of earlier runs."""
    total: int
    """Number of the entry's dialogues."""
    dialogue: LoggedDialogue
    """The dialogue that has just ended."""


class Suite:
    """Runs entries one after the other and writes a log for each into a folder, and `timing.csv` for all of them.

    The first entry is the base: the fluency check is calibrated so that 95 % of its replies pass.

    Args:
        folder: where the logs and `results.json` are written.
        repeats: number of dialogues per profile.
        resume: continue the logs in the folder. Failed dialogues are played again.
        temporary: the folder is deleted afterwards, so an error does not promise that it can be continued.
        pace: chooses how many dialogues of an entry are in progress at the same time, and their deadline.
        prices: what tokens cost; None means the prices of the package.
        on_progress: called whenever a dialogue ends.
    """

    def __init__(
        self,
        folder: Path,
        preset: Preset,
        *,
        seed: int = 0,
        repeats: int = 1,
        resume: bool = False,
        temporary: bool = False,
        pace: Callable[[Policy, User], Pace] = pace_for,
        prices: Prices | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.folder, self.preset, self.seed, self.repeats = folder, preset, seed, repeats
        self.transcripts: dict[str, list[Transcript]] = {}
        """The dialogues of each entry that has run, by its label."""
        self._resume, self._temporary, self._pace, self._prices = resume, temporary, pace, prices or Prices()
        self._on_progress = on_progress or (lambda _: None)
        self._fluency_check: FluencyCheck | None = None

    def run(self, entries: Sequence[Entry]) -> list[PolicyResult]:
        """Play the dialogues of all entries. Returns one result per entry.

        Raises:
            RlverError: an endpoint cannot be used, the folder holds other logs, or an entry has no scored dialogue.
        """
        results = []
        for number, entry in enumerate(entries, 1):
            path = self.folder / f"{number}-{_slug(entry.label)}.jsonl"
            self._play(entry, path)
            transcripts, usage = [], Usage()
            for dialogue in read_log(path):
                transcripts.append(dialogue.transcript)
                add(usage, dialogue.usage)
            # Without a second entry, or without replies of the base, there is nothing to compare.
            if number == 1 and len(entries) > 1 and (replies := replies_of(transcripts)):
                self._fluency_check = FluencyCheck.calibrate(transcripts[0].language, replies)
            result = assess(entry.policy, transcripts, self._fluency_check, path, usage, self._prices)
            results.append(result.model_copy(update={"policy": entry.label}))
            self.transcripts[entry.label] = transcripts
        return results

    def _play(self, entry: Entry, path: Path) -> None:
        """Play the dialogues of an entry that its log does not have yet."""
        jobs = list_jobs(entry.profiles, self.repeats, self.seed)
        config = RunConfig(
            policy=entry.policy.spec,
            prompt=entry.policy.prompt_hash,
            think=entry.policy.think,
            temperature=getattr(entry.policy, "temperature", None),
            max_tokens=getattr(entry.policy, "max_tokens", None),
            top_p=getattr(entry.policy, "top_p", None),
            user=entry.user.identity,
            user_settings=getattr(entry.user, "settings", {}),
            preset=self.preset.name,
            language=entry.profiles[0].language,
            seed=self.seed,
        )
        with RunLog(path, config, self._resume) as log:
            done = sum(job.key in log.scored for job in jobs)

            def on_dialogue(dialogue: LoggedDialogue) -> None:
                nonlocal done
                done += 1
                self._write_timing(path, dialogue)
                self._on_progress(Progress(entry.label, done, len(jobs), dialogue))

            pace = self._pace(entry.policy, entry.user)
            try:
                run_to_log(jobs, entry.policy, entry.user, self.preset, pace, log, on_dialogue)
            except RlverError as error:
                if self._temporary:
                    raise
                raise RlverError(
                    f"{str(error).rstrip('.')}; {len(log.scored)} of {len(jobs)} dialogues are kept in {path}, "
                    "continue with --resume."
                ) from None

    def _write_timing(self, log: Path, dialogue: LoggedDialogue) -> None:
        """Add a dialogue to `timing.csv` in the folder. Its lines differ from run to run, unlike those of the logs."""
        path = self.folder / "timing.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(("log", "profile", "repeat", "ended", "seconds"))
            ended = datetime.now(UTC).isoformat(timespec="seconds")
            seconds = f"{dialogue.seconds or 0:.3f}"
            writer.writerow((log.name, dialogue.transcript.profile, dialogue.repeat, ended, seconds))

    def results(self, entries: Sequence[Entry], profiles_source: str, sampling: Sampling) -> BenchmarkResults:
        """Run entries that have the same user and profiles, and write `results.json`.

        Args:
            profiles_source: path of the file of profiles, or "built-in".

        Raises:
            RlverError: as `run`, or `results.json` cannot be written.
        """
        profiles = entries[0].profiles
        results = BenchmarkResults(
            rlver=version(),
            revision=revision(),
            language=profiles[0].language,
            preset=self.preset.name,
            user=entries[0].user.identity,
            profiles=profiles_source,
            profiles_hash=digest(*(profile.model_dump_json() for profile in profiles)),
            n=len(profiles),
            repeats=self.repeats,
            seed=self.seed,
            sampling=sampling,
            policies=tuple(self.run(entries)),
        )
        results.write(self.folder / "results.json")
        return results


def _slug(label: str) -> str:
    """A file name for a label."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-.")[-60:]
