"""The benchmark of one or several policies: a log for each, one table for all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from rlver.version import version


@dataclass(frozen=True)
class Entry:
    """One row of a benchmark: a policy, the users that it meets, and their profiles."""

    policy: Policy
    user: User
    profiles: Sequence[Profile]
    name: str = ""
    """Its name in the table; empty means the policy's spec."""

    @property
    def label(self) -> str:
        """The name, or the policy's spec."""
        return self.name or self.policy.spec


@dataclass(frozen=True)
class Progress:
    """Where a benchmark stands when a dialogue ends."""

    label: str
    """The entry at work."""
    done: int
    """Dialogues of the entry that are over, earlier runs included."""
    total: int
    dialogue: LoggedDialogue
    """The dialogue that has just ended."""


class Suite:
    """Runs entries one after the other and writes a log for each into a folder.

    The first entry is the base: the fluency check is calibrated so that 95 % of its replies pass.

    Args:
        resume: continue the logs in the folder. Failed dialogues are played again.
        pace: chooses how many dialogues of an entry are at work at once, and their deadline.
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
        pace: Callable[[Policy, User], Pace] = pace_for,
        prices: Prices | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.folder, self.preset, self.seed, self.repeats = folder, preset, seed, repeats
        self.transcripts: dict[str, list[Transcript]] = {}
        """The dialogues of each entry by its label."""
        self._resume, self._pace, self._prices = resume, pace, prices or Prices()
        self._on_progress = on_progress or (lambda _: None)
        self._fluency: FluencyCheck | None = None

    def run(self, entries: Sequence[Entry]) -> list[PolicyResult]:
        """Play all entries and return a result for each.

        Raises:
            RlverError: an endpoint cannot be used, the folder holds other logs, or nothing could be scored.
        """
        results = []
        for number, entry in enumerate(entries, 1):
            path = self.folder / f"{number}-{_slug(entry.label)}.jsonl"
            self._play(entry, path)
            transcripts, usage = [], Usage()
            for dialogue in read_log(path):
                transcripts.append(dialogue.transcript)
                add(usage, dialogue.usage)
            # A base without readable replies leaves nothing to compare with.
            if number == 1 and len(entries) > 1 and (replies := replies_of(transcripts)):
                self._fluency = FluencyCheck.calibrate(transcripts[0].language, replies)
            result = assess(entry.policy, transcripts, self._fluency, path, usage, self._prices)
            results.append(result.model_copy(update={"policy": entry.label}))
            self.transcripts[entry.label] = transcripts
        return results

    def _play(self, entry: Entry, path: Path) -> None:
        """Play what the log of an entry lacks."""
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
                self._on_progress(Progress(entry.label, done, len(jobs), dialogue))

            pace = self._pace(entry.policy, entry.user)
            try:
                run_to_log(jobs, entry.policy, entry.user, self.preset, pace, log, on_dialogue)
            except RlverError as error:
                raise RlverError(
                    f"{str(error).rstrip('.')}; {len(log.scored)} of {len(jobs)} dialogues are kept in {path}, "
                    "go on with --resume."
                ) from None

    def results(self, entries: Sequence[Entry], profiles_source: str, sampling: Sampling) -> BenchmarkResults:
        """Run the entries, which share user and profiles, and write `results.json`.

        Args:
            profiles_source: the file of the profiles, or "built-in".
        """
        profiles = entries[0].profiles
        results = BenchmarkResults(
            rlver=version(),
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
    return re.sub(r"[^\w.-]+", "-", label).strip("-.")[-60:]
