"""The results of a benchmark as a file: what was measured, how, and everything needed to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rlver.benchmark.acts import act_matrix, fit_share, repeated_share
from rlver.benchmark.fluency import FluencyCheck, replies_of
from rlver.benchmark.statistics import Summary, summarise
from rlver.core.errors import RlverError
from rlver.core.profile import Frozen, Intention, Language
from rlver.core.transcript import Transcript
from rlver.policies.base import Policy


class PolicyResult(Frozen):
    """What the benchmark found for one policy."""

    policy: str
    """The policy's spec."""
    think: bool
    """Whether it thought before its replies."""
    prompt: str
    """Hash of its system prompt; empty if it has none."""
    temperature: float | None = None
    """At which its replies were sampled; None if it does not sample."""
    summary: Summary
    fit: float
    """Share of its acts that suit the hidden intention, 0-1."""
    fluent: float | None
    """Share of its replies that pass the fluency check, 0-1; None if there was no base policy to calibrate it."""
    repeated: float
    """Share of its replies that it had given in the same dialogue before, 0-1."""
    acts: dict[Intention, dict[str, int]]
    """Replies by hidden intention and act."""
    transcripts: str = ""
    """The file of the dialogues; empty if none was written."""


class Sampling(Frozen):
    """How models were sampled."""

    temperature: float | None
    """Divides the logits, 0 takes the likeliest token; None means as each policy was trained."""
    max_tokens: int | None
    """Most tokens of one reply, thinking included; None means as each policy was trained."""


class BenchmarkResults(Frozen):
    """The whole of `results.json`."""

    version: Literal[1] = 1
    rlver: str
    """Version of the package."""
    language: Language
    preset: str
    user: str
    """The sentient agent's identity."""
    profiles: str
    """The file of the profiles, or "built-in"."""
    profiles_hash: str
    """Hash of the profiles themselves."""
    n: int
    """Number of profiles."""
    repeats: int
    """Dialogues per profile."""
    seed: int
    sampling: Sampling
    policies: tuple[PolicyResult, ...]

    def write(self, path: Path) -> None:
        """Write as indented JSON. Raises RlverError if that is impossible."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RlverError(f"{path}: cannot be written ({error.strerror}).") from None


def assess(
    policy: Policy, transcripts: Sequence[Transcript], check: FluencyCheck | None, path: Path | None = None
) -> PolicyResult:
    """The result of one policy; `path` is where its transcripts lie."""
    return PolicyResult(
        policy=policy.spec,
        think=policy.think,
        prompt=policy.prompt_hash,
        temperature=getattr(policy, "temperature", None),
        summary=summarise(transcripts),
        fit=fit_share(transcripts),
        fluent=check.share(replies_of(transcripts)) if check else None,
        repeated=repeated_share(transcripts),
        acts=act_matrix(transcripts),
        transcripts=str(path) if path else "",
    )
