"""The results of a benchmark as a file: the figures, the settings, and everything that is needed to repeat it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from rlver.core.dialogue import StopReason
from rlver.core.errors import RlverError
from rlver.core.interfaces import Policy
from rlver.core.profile import Frozen, Intention, Language
from rlver.core.transcript import Transcript
from rlver.evaluation.act_matrix import act_matrix, fit_share, reports_acts
from rlver.evaluation.fluency import FluencyCheck, replies_of
from rlver.evaluation.repeated_replies import repeated_share
from rlver.evaluation.statistics import Summary, summarise
from rlver.llm.usage import Prices, Tokens


class PolicyResult(Frozen):
    """The results of one policy."""

    policy: str
    """The policy's spec, or its name in the table."""
    think: bool
    """Whether the policy thinks before its replies."""
    prompt: str
    """Hash of the policy's system prompt; empty if it has none."""
    temperature: float | None = None
    """Sampling temperature of the policy; None if it does not sample."""
    summary: Summary
    """Scores with intervals."""
    fit: float | None
    """Share of the policy's acts that suit the hidden intention, 0-1; None if the users report no acts."""
    fluent: float | None
    """Share of the policy's replies that pass the fluency check, 0-1; None without a base policy to calibrate it."""
    repeated: float
    """Share of the policy's replies that it had already given in the same dialogue, 0-1."""
    acts: dict[Intention, dict[str, int]]
    """Number of replies by hidden intention and act; empty if the users report no acts."""
    transcripts: str = ""
    """Path of the log; empty if none was written."""
    stops: dict[StopReason, int] = Field(default_factory=dict)
    """Number of dialogues by stop reason."""
    usage: dict[str, Tokens] = Field(default_factory=dict)
    """Tokens of policy and user together, by endpoint."""
    cost: float | None = None
    """Cost of the tokens in dollars, by the price file; None if a price is unknown."""


class Sampling(Frozen):
    """How the policies were sampled."""

    temperature: float | None
    """Divides the logits; 0 takes the most likely token. None means as each policy was trained."""
    max_tokens: int | None
    """Most tokens of one reply, thinking included. None means as each policy was trained."""


class BenchmarkResults(Frozen):
    """The contents of `results.json`."""

    version: Literal[1] = 1
    """Version of the file format."""
    rlver: str
    """Version of the package."""
    revision: str = ""
    """Git commit of the source tree; empty for an installed package."""
    language: Language
    """Language of the profiles."""
    preset: str
    """Name of the preset."""
    user: str
    """The user's identity, with a hash of everything that decides how the user behaves."""
    profiles: str
    """Path of the file of profiles, or "built-in"."""
    profiles_hash: str
    """Hash of the contents of all profiles."""
    n: int
    """Number of profiles."""
    repeats: int
    """Number of dialogues per profile."""
    seed: int
    """Seed of the benchmark."""
    sampling: Sampling
    """How the policies were sampled."""
    policies: tuple[PolicyResult, ...]
    """The results of each policy."""

    def write(self, path: Path) -> None:
        """Write the results as indented JSON. Raises RlverError if the file cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RlverError(f"{path}: cannot be written ({error.strerror}).") from None


def assess(
    policy: Policy,
    transcripts: Sequence[Transcript],
    fluency_check: FluencyCheck | None,
    log: Path | None = None,
    usage: Mapping[str, Tokens] | None = None,
    prices: Prices | None = None,
) -> PolicyResult:
    """Compute the results of one policy from its transcripts.

    Figures about acts are reported only if the users report acts. All figures except `stops`, `usage` and `cost` are
    computed from dialogues that have a score.

    Args:
        fluency_check: the check that the base policy has calibrated, if there is one.
        log: path of the log that holds the transcripts.
        usage: tokens by endpoint.

    Raises:
        RlverError: none of the dialogues has a score.
    """
    scored = [transcript for transcript in transcripts if transcript.stop.scored]
    stops = Counter(transcript.stop for transcript in transcripts)
    has_acts = reports_acts(scored)
    return PolicyResult(
        policy=policy.spec,
        think=policy.think,
        prompt=policy.prompt_hash,
        temperature=getattr(policy, "temperature", None),
        summary=summarise(transcripts),
        fit=fit_share(scored) if has_acts else None,
        fluent=fluency_check.share(replies_of(scored)) if fluency_check else None,
        repeated=repeated_share(scored),
        acts=act_matrix(scored) if has_acts else {},
        transcripts=str(log) if log else "",
        stops={reason: stops[reason] for reason in StopReason if stops[reason]},
        usage=dict(usage or {}),
        cost=(prices or Prices()).cost(usage or {}),
    )
