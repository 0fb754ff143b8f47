"""Results for Python: scores as attributes, and dialogues and turns as pandas tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rlver.core.dialogue import Dialogue, Turn
from rlver.core.errors import RlverError
from rlver.core.interfaces import Policy, User
from rlver.core.transcript import Transcript, record
from rlver.evaluation.results import PolicyResult
from rlver.evaluation.statistics import Summary

if TYPE_CHECKING:
    import pandas


class Evaluation:
    """The result of `rlver.evaluate`."""

    def __init__(self, result: PolicyResult, transcripts: Sequence[Transcript]) -> None:
        self.result = result
        """All figures that the benchmark reports about the policy."""
        self.transcripts = list(transcripts)
        """All dialogues, including those that failed."""

    @property
    def summary(self) -> Summary:
        """Scores with intervals: over all dialogues, by hidden intention and by character type."""
        return self.result.summary

    @property
    def score(self) -> float:
        """Mean final emotion, 0-100."""
        return self.summary.score

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % bootstrap percentile interval of the score, clustered by profile."""
        return self.summary.ci95

    @property
    def success(self) -> float:
        """Share of dialogues that ended at 100, 0-1."""
        return self.summary.success

    @property
    def failure(self) -> float:
        """Share of dialogues that ended below 10, 0-1."""
        return self.summary.failure

    @property
    def errors(self) -> int:
        """Number of dialogues that ended because a model or an endpoint failed. All scores leave them out."""
        return self.summary.errors

    def to_pandas(self, by: str = "dialogue") -> pandas.DataFrame:
        """A table with a row per dialogue.

        Args:
            by: "dialogue", or "turn" for a row per turn.

        Raises:
            RlverError: pandas is not installed, or `by` has another value.
        """
        return table(self.transcripts, by)

    def __repr__(self) -> str:
        low, high = self.ci95
        return (
            f"Evaluation({self.result.policy!r}: score {self.score:.1f} (95 %: {low:.1f} to {high:.1f}), "
            f"success {self.success:.0%}, failure {self.failure:.0%}, {self.summary.n} dialogues, "
            f"{self.errors} unscored)"
        )


class Dialogues(list[Dialogue]):
    """The dialogues that `rlver.play` played, in the order of their profiles."""

    def __init__(
        self, dialogues: Iterable[Dialogue], policy: Policy | None = None, user: User | None = None, seed: int = 0
    ) -> None:
        super().__init__(dialogues)
        self._policy, self._user, self._seed = policy, user, seed

    @property
    def transcripts(self) -> list[Transcript]:
        """The dialogues in the form in which they are written to files."""
        return [
            record(
                dialogue,
                policy=self._policy.spec if self._policy else "",
                user=self._user.identity if self._user else "",
                prompt=self._policy.prompt_hash if self._policy else "",
                seed=self._seed,
            )
            for dialogue in self
        ]

    def to_pandas(self, by: str = "dialogue") -> pandas.DataFrame:
        """A table with a row per dialogue or per turn. See `Evaluation.to_pandas`."""
        return table(self.transcripts, by)


def table(transcripts: Sequence[Transcript], by: str = "dialogue") -> pandas.DataFrame:
    """Transcripts as a table with a row per dialogue or per turn.

    Args:
        by: "dialogue" or "turn".

    Raises:
        RlverError: pandas is not installed, or `by` has another value.
    """
    if by not in ("dialogue", "turn"):
        raise RlverError(f"to_pandas(by={by!r}): `by` must be 'dialogue' or 'turn'.")
    pandas = need_pandas()
    if by == "dialogue":
        return pandas.DataFrame([_dialogue_row(transcript) for transcript in transcripts])
    return pandas.DataFrame(
        [
            _dialogue_columns(transcript) | _turn_row(number, turn)
            for transcript in transcripts
            for number, turn in enumerate(transcript.turns, 1)
        ]
    )


def need_pandas() -> Any:
    """The module `pandas`. Raises RlverError if it is not installed."""
    try:
        import pandas
    except ImportError:
        raise RlverError("to_pandas needs pandas: pip install 'rlver[pandas]'.") from None
    return pandas


def _dialogue_columns(transcript: Transcript) -> dict[str, Any]:
    """The columns that tables by dialogue and by turn share."""
    return {
        "profile": transcript.profile,
        "intention": str(transcript.intention),
        "character": str(transcript.character),
        "language": transcript.language,
        "policy": transcript.policy,
        "user": transcript.user,
        "seed": transcript.seed,
    }


def _dialogue_row(transcript: Transcript) -> dict[str, Any]:
    scored = transcript.stop.scored
    return _dialogue_columns(transcript) | {
        "score": transcript.score if scored else None,
        "success": transcript.success if scored else None,
        "failure": transcript.failure if scored else None,
        "stop": str(transcript.stop),
        "turns": len(transcript.turns),
        "error": transcript.error,
    }


def _turn_row(number: int, turn: Turn) -> dict[str, Any]:
    reaction = turn.reaction
    return {
        "turn": number,
        "thought": turn.thought,
        "reply": turn.reply,
        "change": reaction.change if reaction else None,
        "emotion": turn.score,
        "utterance": reaction.utterance if reaction else None,
        "acts": ", ".join(reaction.acts) if reaction else "",
        "reasons": {reason.cue: reason.points for reason in reaction.reasons} if reaction else {},
    }
