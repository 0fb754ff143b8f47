"""The Python API: the functions that `import rlver` offers. Most of them do the same as a command of `rlver`."""

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
"""A spec, a policy, or a function, sync or async, that takes messages and returns a reply."""
AnyUser = str | User
"""A spec, or an object with the methods `async open(dialogue, seed)` and `async react(dialogue, seed)`."""


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
    """Measure a policy with simulated users, like `rlver bench`.

    Args:
        policy: a spec (`scripted:hedge`, the path of a folder with a model, `openai:MODEL@BASE_URL`), a policy object,
            or a function, sync or async, that takes a list of `{"role", "content"}` messages and returns a reply.
        user: a spec (`embedded`, `vanilla`, `challenging`, `openai:MODEL@BASE_URL`), or a user object.
        user_type: type of the user, if `user` is a spec.
        language: language of the policy, the user and the profiles.
        profiles: profiles, or the path of a file of them; None means the 100 held-out profiles of the built-in
            benchmark.
        n: use only the first n profiles.
        repeats: number of dialogues per profile.
        preset: the rules of the emotion: the name of a preset, or a `Preset`.
        seed: the same seed and settings give the same dialogues, unless an endpoint or a function answers differently.
        think, temperature, max_tokens: settings of the policy, if `policy` is a spec; None means as it was trained.
        concurrency: largest number of dialogues at a time if an endpoint or a function answers.
        batch: largest number of dialogues that a local model serves at a time.
        deadline: seconds after which a dialogue with an endpoint or a function ends as failed.
        out: folder for the log of the dialogues; None writes no log.
        resume: continue the benchmark in `out`. Failed dialogues are played again.
        on_progress: called whenever a dialogue ends.

    Raises:
        RlverError: an argument is wrong, an endpoint cannot be used, or no dialogue has a score.
    """
    available = list(profiles) if isinstance(profiles, Sequence) and not isinstance(profiles, str) else None
    if available is None:
        available = load_profiles(profiles, language)  # type: ignore[arg-type]  # mypy does not narrow the union
    if n is not None and not 1 <= n <= len(available):
        raise RlverError(f"n={n}: there are {len(available)} profiles, so n must be from 1 to {len(available)}.")
    if resume and out is None:
        raise RlverError("resume=True: name with `out` the folder of the benchmark to continue.")
    entry = Entry(
        as_policy(policy, language, think=think, temperature=temperature, max_tokens=max_tokens),
        as_user(user, language, user_type),
        available[:n],
    )
    with TemporaryDirectory() as temporary_folder:
        suite = Suite(
            Path(out or temporary_folder),
            _preset(preset),
            seed=seed,
            repeats=repeats,
            resume=resume,
            temporary=out is None,
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
        profiles: all in the same language.
        policy, user, user_type, preset, seed: as for `evaluate`.
        slots: largest number of dialogues at a time; None plays all at the same time.
        deadline: seconds after which a dialogue ends as failed; None sets no limit.

    Raises:
        RlverError: an argument is wrong, or an endpoint cannot be used.
    """
    if not profiles:
        return Dialogues([])
    language = profiles[0].language
    the_policy, the_user = as_policy(policy, language), as_user(user, language, user_type)
    dialogues: list[Dialogue] = play_dialogues(
        profiles, the_policy, the_user, _preset(preset), seed=seed, slots=slots, deadline=deadline
    )
    return Dialogues(dialogues, policy=the_policy, user=the_user, seed=seed)


def train(
    config: TrainConfig | None = None,
    *,
    out: str | Path,
    user: AnyUser | None = None,
    resume: bool = False,
    reward: Callable[[Dialogue], float | list[float]] | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    **settings: Any,
) -> TrainingRun:
    """Train a policy on the emotions of simulated users, like `rlver train`.

    The policy `tiny` is pretrained first if it does not exist yet, which takes two to three minutes on two cores.

    Args:
        config: all settings at once. Alternatively, give single settings by name:
            `train(policy="tiny", steps=24, out="runs/mine")`.
        out: folder of the run.
        user: the simulated user: a spec, which is the setting of that name, or a user object.
        resume: continue the run in `out` from its last checkpoint.
        reward: your own reward in place of the emotion. It takes a dialogue and returns one number for the dialogue,
            or a list with one number per turn.
        on_step: called with (number of steps done, metrics) after each step.

    Raises:
        RlverError: a setting is wrong, the folder holds something else, or the model cannot be trained.
    """
    from rlver.tiny import base_policy
    from rlver.train.config import TrainConfig
    from rlver.train.runs.checks import check_start
    from rlver.train.runs.result import TrainingRun
    from rlver.train.runs.training_run import run

    if config is not None and settings:
        raise RlverError(f"train: give either a config or settings, not both (settings: {', '.join(settings)}).")
    if config is None:
        config = TrainConfig(**settings | ({"user": user} if isinstance(user, str) else {}))
    elif isinstance(user, str):
        raise RlverError(
            f"train: the config names the user {config.user!r}; give user={user!r} as its setting instead."
        )
    own_user = None if user is None or isinstance(user, str) else as_user(user, config.language, config.user_type)
    folder = Path(out)
    check_start(config, folder, resume, reward)
    if resume and (folder / "base").is_dir():
        base = folder / "base"
    elif config.policy == "tiny":
        base = base_policy(config.language, config.think, config.seed)
    else:
        base = Path(config.policy)
    run(config, base, folder, resume=resume, users=own_user, on_step=on_step, reward=reward)
    return TrainingRun(folder)


def load_run(folder: str | Path) -> TrainingRun:
    """The run in a folder that `train` or `rlver train` wrote. Raises RlverError if the folder holds no run."""
    from rlver.train.runs.result import TrainingRun

    return TrainingRun(Path(folder))


def load_profiles(path: str | Path | None = None, language: Language = "en") -> list[Profile]:
    """The profiles of a JSON-lines file in our format or in the official one, or those of the built-in benchmark.

    Args:
        path: the file; None means the 100 profiles of the built-in benchmark.

    Raises:
        RlverError: the file is missing or broken, or has a profile in another language.
    """
    return read_profiles_of(language, Path(path) if path is not None else None)


def generate_profiles(language: Language = "en", n: int = 100, split: Split = "train", seed: int = 0) -> list[Profile]:
    """Generate n profiles, which combine stories, personas and hidden intentions at random.

    Args:
        split: the set of stories: `train`, `validation` or `benchmark`.
        seed: the same seed gives the same profiles.
    """
    return generate(language, split, n, seed)


def load_policy(spec: str, language: Language = "en", **options: Any) -> Policy:
    """The policy that a spec names. `rlver.policies.load.load_policy` describes the options."""
    return load_policy_of(spec, language, **options)


def embedded_user(
    language: Language = "en", user_type: UserType = "vanilla", phrasing: Phrasing = "heldout"
) -> EmbeddedUser:
    """The simulated user that runs offline and explains every point that it gives.

    Args:
        phrasing: whether it speaks with sentences that are held out of training (`heldout`) or with those of training
            (`train`).
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
        spec: `openai:MODEL@BASE_URL` or `any:PROVIDER/MODEL`. Keys are read from the environment.
        judges: specs of models that judge instead of the model that speaks. The median of all verdicts counts.
        votes: number of verdicts of each judge.
        judge_temperature: sampling temperature of the verdicts.
        limits: concurrency, rate, timeout and attempts of the calls.

    Raises:
        RlverError: a spec is wrong.
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
