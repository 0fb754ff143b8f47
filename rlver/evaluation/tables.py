"""Results in Python: scores as attributes, dialogues and turns as pandas tables."""

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
    """What `rlver.evaluate` measured."""

    def __init__(self, result: PolicyResult, transcripts: Sequence[Transcript]) -> None:
        self.result = result
        """Everything that the benchmark reports about the policy."""
        self.transcripts = list(transcripts)
        """Every dialogue, failed ones included."""

    @property
    def summary(self) -> Summary:
        """Scores with intervals: in all, by hidden intention and by character."""
        return self.result.summary

    @property
    def score(self) -> float:
        """Mean final emotion, 0-100."""
        return self.summary.score

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % bootstrap interval of the score, clustered by profile."""
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
        """Dialogues that a failure ended. The scores leave them out."""
        return self.summary.errors

    def to_pandas(self, by: str = "dialogue") -> pandas.DataFrame:
        """A table with a row for each dialogue, or with `by="turn"` for each turn.

        Raises:
            RlverError: pandas is not installed, or `by` is something else.
        """
        return table(self.transcripts, by)

    def __repr__(self) -> str:
        low, high = self.ci95
        return (
            f"Evaluation({self.result.policy!r}: score {self.score:.1f} (95 %: {low:.1f} to {high:.1f}), "
            f"success {self.success:.0%}, failure {self.failure:.0%}, {self.summary.n} dialogues, {self.errors} failed)"
        )


class Dialogues(list[Dialogue]):
    """Played dialogues, in the order of their profiles."""

    def __init__(
        self, dialogues: Iterable[Dialogue], policy: Policy | None = None, user: User | None = None, seed: int = 0
    ) -> None:
        super().__init__(dialogues)
        self._policy, self._user, self._seed = policy, user, seed

    @property
    def transcripts(self) -> list[Transcript]:
        """The dialogues as they are written to files."""
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
        """As `Evaluation.to_pandas`."""
        return table(self.transcripts, by)


def table(transcripts: Sequence[Transcript], by: str = "dialogue") -> pandas.DataFrame:
    """Transcripts as a table, a row for each dialogue or for each turn.

    Raises:
        RlverError: pandas is not installed, or `by` is neither.
    """
    if by not in ("dialogue", "turn"):
        raise RlverError(f"to_pandas(by={by!r}): choose 'dialogue' or 'turn'.")
    frame = need_pandas()
    if by == "dialogue":
        return frame.DataFrame([_dialogue_row(transcript) for transcript in transcripts])
    return frame.DataFrame(
        [
            _keys(transcript) | _turn_row(number, turn)
            for transcript in transcripts
            for number, turn in enumerate(transcript.turns, 1)
        ]
    )


def need_pandas() -> Any:
    """The pandas module. Raises RlverError if it is not installed."""
    try:
        import pandas
    except ImportError:
        raise RlverError("to_pandas needs pandas: pip install 'rlver[pandas]'.") from None
    return pandas


def _keys(transcript: Transcript) -> dict[str, Any]:
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
    return _keys(transcript) | {
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
