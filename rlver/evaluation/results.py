"""The results of a benchmark as a file: what was measured, how, and everything needed to repeat it."""

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
from rlver.evaluation.act_matrix import act_matrix, fit_share, repeated_share
from rlver.evaluation.fluency import FluencyCheck, replies_of
from rlver.evaluation.statistics import Summary, summarise
from rlver.llm.usage import Prices, Tokens


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
    fit: float | None
    """Share of its acts that suit the hidden intention, 0-1; None with users that report no acts."""
    fluent: float | None
    """Share of its replies that pass the fluency check, 0-1; None if there was no base policy to calibrate it."""
    repeated: float
    """Share of its replies that it had given in the same dialogue before, 0-1."""
    acts: dict[Intention, dict[str, int]]
    """Replies by hidden intention and act."""
    transcripts: str = ""
    """The log of the dialogues; empty if none was written."""
    stops: dict[StopReason, int] = Field(default_factory=dict)
    """Dialogues by why they ended."""
    usage: dict[str, Tokens] = Field(default_factory=dict)
    """Tokens by endpoint, of policy and user together."""
    cost: float | None = None
    """Dollars by the price file; None if a price is not known."""


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
    policy: Policy,
    transcripts: Sequence[Transcript],
    check: FluencyCheck | None,
    path: Path | None = None,
    usage: Mapping[str, Tokens] | None = None,
    prices: Prices | None = None,
) -> PolicyResult:
    """The result of one policy; `path` is where its log lies."""
    scored = [transcript for transcript in transcripts if transcript.stop.scored]
    stops = Counter(transcript.stop for transcript in transcripts)
    return PolicyResult(
        policy=policy.spec,
        think=policy.think,
        prompt=policy.prompt_hash,
        temperature=getattr(policy, "temperature", None),
        summary=summarise(transcripts),
        fit=fit_share(scored) if any(t.user.startswith("embedded") for t in scored) else None,
        fluent=check.share(replies_of(scored)) if check else None,
        repeated=repeated_share(scored),
        acts=act_matrix(scored),
        transcripts=str(path) if path else "",
        stops={reason: stops[reason] for reason in StopReason if stops[reason]},
        usage=dict(usage or {}),
        cost=(prices or Prices()).cost(usage or {}),
    )
