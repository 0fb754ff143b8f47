"""The Python API: what `import rlver` hands out. Each function does what a command of the command line does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rlver.core.dialogue import Dialogue
from rlver.core.emotion import Preset, get_preset
from rlver.core.errors import RlverError
from rlver.core.interfaces import Policy, User, UserType
from rlver.core.profile import Language, Profile
from rlver.evaluation.benchmark import pace_for
from rlver.evaluation.profiles import load_profiles as read_profiles_of
from rlver.evaluation.suite import Entry, Progress, Suite
from rlver.evaluation.tables import Dialogues, Evaluation
from rlver.llm import LLM, Limits, parse_endpoint
from rlver.policies.load import as_policy
from rlver.policies.load import load_policy as load_policy_of
from rlver.rollout import play as play_dialogues
from rlver.stories.generate import generate
from rlver.stories.library import Split
from rlver.users.embedded.speech import Phrasing
from rlver.users.embedded.user import EmbeddedUser
from rlver.users.llm import JudgeOptions, LlmUser
from rlver.users.load import as_user

if TYPE_CHECKING:
    from rlver.train.config import TrainConfig
    from rlver.train.runs.result import TrainingRun

AnyPolicy = str | Policy | Callable[[list[dict[str, str]]], Any]
"""A spec, a policy, or a function (sync or async) from messages to a reply."""
AnyUser = str | User
"""A spec, or an object with `async open(dialogue, seed)` and `async react(dialogue, seed)`."""


def evaluate(
    policy: AnyPolicy,
    user: AnyUser = "embedded",
    *,
    user_type: UserType = "vanilla",
    language: Language = "en",
    profiles: Sequence[Profile] | str | Path | None = None,
    n: int | None = None,
    repeats: int = 1,
    preset: str | Preset = "sage",
    seed: int = 0,
    think: bool | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    concurrency: int = 32,
    batch: int = 64,
    deadline: float = 900.0,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Measure a policy with simulated users (`rlver bench`).

    Args:
        policy: a spec (`scripted:hedge`, a folder with a model, `openai:MODEL@BASE_URL`), a policy object, or a
            function from a list of `{"role", "content"}` messages to a reply, sync or async.
        user: a spec (`embedded`, `vanilla`, `challenging`, `openai:MODEL@BASE_URL`), or a user object.
        user_type: of the user that a spec names.
        profiles: profiles or a file of them; None takes the 100 held-out profiles of the built-in benchmark.
        n: take the first n profiles only.
        repeats: dialogues per profile.
        preset: name of the rules of the emotion, or a `Preset`.
        think, temperature, max_tokens: of a policy that a spec names; None means as it was trained.
        concurrency: dialogues at once where an endpoint or a function answers.
        batch: dialogues that a local model serves at once.
        deadline: seconds that one dialogue may take.
        out: folder for the log of the dialogues; None keeps nothing on disk.
        resume: continue the benchmark in `out`. Failed dialogues are played again.
        on_progress: called whenever a dialogue ends.

    Raises:
        RlverError: bad input, an endpoint that cannot be used, or no dialogue that could be scored.
    """
    chosen = list(profiles) if isinstance(profiles, Sequence) and not isinstance(profiles, str) else None
    if chosen is None:
        chosen = load_profiles(profiles, language)  # type: ignore[arg-type]  # mypy does not narrow the union
    if n is not None and not 1 <= n <= len(chosen):
        raise RlverError(f"n={n}: there are {len(chosen)} profiles.")
    if resume and out is None:
        raise RlverError("resume=True: say with `out` which benchmark to continue.")
    entry = Entry(
        as_policy(policy, language, think=think, temperature=temperature, max_tokens=max_tokens),
        as_user(user, language, user_type),
        chosen[:n],
    )
    with TemporaryDirectory() as nowhere:
        suite = Suite(
            Path(out or nowhere),
            _preset(preset),
            seed=seed,
            repeats=repeats,
            resume=resume,
            pace=partial(pace_for, batch=batch, concurrency=concurrency, deadline=deadline),
            on_progress=on_progress,
        )
        (result,) = suite.run([entry])
    if out is None:
        result = result.model_copy(update={"transcripts": ""})
    return Evaluation(result, suite.transcripts[entry.label])


def play(
    profiles: Sequence[Profile],
    policy: AnyPolicy,
    user: AnyUser = "embedded",
    *,
    user_type: UserType = "vanilla",
    preset: str | Preset = "sage",
    seed: int = 0,
    slots: int | None = 32,
    deadline: float | None = None,
) -> Dialogues:
    """Play one dialogue per profile and return the dialogues in the order of the profiles.

    Args:
        policy, user, user_type, preset: as for `evaluate`.
        slots: dialogues at once; None plays all at once.
        deadline: seconds that one dialogue may take; None sets no limit.
    """
    if not profiles:
        return Dialogues([])
    language = profiles[0].language
    who, whom = as_policy(policy, language), as_user(user, language, user_type)
    dialogues: list[Dialogue] = play_dialogues(
        profiles, who, whom, _preset(preset), seed=seed, slots=slots, deadline=deadline
    )
    return Dialogues(dialogues, policy=who, user=whom, seed=seed)


def train(
    config: TrainConfig | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    reward: Callable[[Dialogue], float | list[float]] | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    **settings: Any,
) -> TrainingRun:
    """Train a policy on the emotions of simulated users (`rlver train`).

    Args:
        config: all settings; or give settings by name: `train(policy="tiny", steps=24, out="runs/mine")`.
        out: folder of the run.
        resume: continue the run in `out` from its last checkpoint.
        reward: a reward of your own: a number per dialogue, or a list with a number per turn. It replaces the
            emotion.
        on_step: called with (steps done, metrics) after each step.

    Raises:
        RlverError: bad settings, a folder that holds something else, or a model that cannot be trained.
    """
    from rlver.tiny import base_policy
    from rlver.train.config import TrainConfig
    from rlver.train.runs.result import TrainingRun
    from rlver.train.runs.training_run import run

    if config is not None and settings:
        raise RlverError(f"train: give a config or settings, not both ({', '.join(settings)}).")
    chosen = config or TrainConfig(**settings)
    folder = Path(out)
    if resume and (folder / "base").is_dir():
        base = folder / "base"
    elif chosen.policy == "tiny":
        base = base_policy(chosen.language, chosen.think, chosen.seed)
    else:
        base = Path(chosen.policy)
    run(chosen, base, folder, resume=resume, on_step=on_step, reward=reward)
    return TrainingRun(folder)


def load_run(folder: str | Path) -> TrainingRun:
    """The run in a folder that `train` or `rlver train` has written."""
    from rlver.train.runs.result import TrainingRun

    return TrainingRun(Path(folder))


def load_profiles(path: str | Path | None = None, language: Language = "en") -> list[Profile]:
    """The profiles of a JSON-lines file, ours or official; without a file, the 100 of the built-in benchmark.

    Raises:
        RlverError: the file is missing or broken, or holds a profile of another language.
    """
    return read_profiles_of(language, Path(path) if path is not None else None)


def generate_profiles(language: Language = "en", n: int = 100, split: Split = "train", seed: int = 0) -> list[Profile]:
    """Make profiles: a seeded cross of stories, personas and hidden intentions.

    Args:
        split: which stories they tell: `train`, `validation` or `benchmark`.
    """
    return generate(language, split, n, seed)


def load_policy(spec: str, language: Language = "en", **options: Any) -> Policy:
    """The policy that a spec names. See `rlver.policies.load.load_policy` for the options."""
    return load_policy_of(spec, language, **options)


def embedded_user(
    language: Language = "en", user_type: UserType = "vanilla", phrasing: Phrasing = "heldout"
) -> EmbeddedUser:
    """The user that runs offline and explains every point it gives.

    Args:
        phrasing: whether it speaks with sentences held out of training (`heldout`) or with those of training (`train`).
    """
    return EmbeddedUser(language, user_type, phrasing)


def llm_user(
    spec: str,
    language: Language = "en",
    user_type: UserType = "vanilla",
    *,
    judges: Sequence[str] = (),
    votes: int = 1,
    judge_temperature: float = 0.0,
    limits: Limits | None = None,
) -> LlmUser:
    """A language model behind an endpoint as the simulated user.

    Args:
        spec: `openai:MODEL@BASE_URL` or `any:PROVIDER/MODEL`. Keys come from the environment.
        judges: specs of models that judge instead of the one that speaks. The median of their votes counts.
        votes: verdicts of each judge.
        limits: concurrency, rate, timeout and attempts of the calls.
    """
    clients = {name: LLM(parse_endpoint(name), limits or Limits()) for name in dict.fromkeys((spec, *judges))}
    return LlmUser(
        clients[spec],
        language,
        user_type,
        judges=[clients[name] for name in judges],
        options=JudgeOptions(votes=votes, judge_temperature=judge_temperature),
    )


def _preset(preset: str | Preset) -> Preset:
    return preset if isinstance(preset, Preset) else get_preset(preset)
