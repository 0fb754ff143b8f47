"""The model card of an exported policy: what it is, how to use it, how it was trained, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from rlver.core.errors import RlverError, first_problem
from rlver.core.files import read_file
from rlver.core.jsonl import read_objects
from rlver.core.profile import Language
from rlver.evaluation.results import BenchmarkResults, PolicyResult
from rlver.policies.prompts import system_prompt
from rlver.train.runs.run_folder import read_json
from rlver.train.runs.validation import PREFIX

_SHOWN = (
    "algo", "credit", "user", "user_type", "preset", "steps", "batch", "group", "epochs", "minibatches", "lr", "warmup",
    "final_rate", "kl", "entropy", "clip", "gamma", "temperature", "max_tokens", "seed",
)  # fmt: skip

_GREETING = {"en": "I had a fight with my sister and now I cannot sleep.", "zh": "我跟妹妹吵了一架，现在睡不着。"}

_LIMITS = """## Limits

- Its rewards and its scores come from *simulated* users: from programs or language models that play people. How real
  people would feel about it was not measured. Scores with different users, presets or versions are not comparable.
- It is no therapist and gives no medical, legal or crisis advice. In an emergency, people need people.
- A model that is rewarded for how somebody feels may learn to please rather than to help. Check for flattery and for
  agreement with false statements before you let it talk with anybody.
- It was trained in one language, on short dialogues about everyday troubles."""


class Subject(NamedTuple):
    """The policy that the card is about."""

    name: str
    facts: Mapping[str, Any]
    """The contents of its `rlver.json`."""
    run: Mapping[str, Any]
    """The contents of the `config.json` of its run; empty if it is not part of a run."""


class Row(NamedTuple):
    """One line of the table of scores."""

    name: str
    n: int
    score: float
    low: float
    high: float
    success: float
    failure: float


class Results(NamedTuple):
    """What was measured."""

    source: str
    """What measured it."""
    rows: Sequence[Row]
    """Several policies, or one policy with several types of users."""
    facts: Mapping[str, Any]
    """What the scores depend on, by name."""


def read_results(file: Path, policy: Path) -> Results:
    """The results of `rlver bench`.

    Raises:
        RlverError: the file cannot be read, or it holds no result of this policy.
    """
    try:
        results = BenchmarkResults.model_validate_json(read_file(file))
    except ValidationError as error:
        raise RlverError(f"{file}: must hold results of `rlver bench` ({first_problem(error)}).") from None
    own = [result for result in results.policies if _is_folder(result.policy, policy)]
    if not own:
        names = ", ".join(result.policy for result in results.policies)
        raise RlverError(f"{file}: is about {names}, and not about {policy}; measure it with rlver bench.")
    base = [result for result in results.policies if _is_folder(result.policy, policy.parent / "base")]
    rows = [_row("this policy", own[0]), *(_row("what it was trained from", result) for result in base)]
    rows += [_row(result.policy, result) for result in results.policies if result.policy.startswith("scripted:")]
    profiles = results.profiles if results.profiles == "built-in" else Path(results.profiles).name
    facts = {
        "preset": results.preset,
        "simulated user": results.user,
        "profiles": f"{results.n} ({profiles}, {results.profiles_hash})",
        "dialogues per profile": results.repeats,
        "system prompt": own[0].prompt,
        "temperature": own[0].temperature,
        "seed": results.seed,
        "rlver": results.rlver,
    }
    return Results("`rlver bench`", rows, facts)


def own_results(run: Path | None, facts: Mapping[str, Any]) -> Results | None:
    """The run's own evaluation of a policy; None if there was none.

    Args:
        facts: the contents of the policy's `rlver.json`.
    """
    evaluation = read_json(run / "config.json").get("evaluation") if run else None
    if run is None or not evaluation or not (run / "metrics.jsonl").is_file():
        return None
    metrics = next((line for _, line in read_objects(run / "metrics.jsonl") if line["step"] == facts.get("step")), {})
    rows = [
        Row(
            f"{user_type} users",
            evaluation["n"],
            *(metrics[f"{PREFIX}{user_type}/{name}"] for name in ("score", "low", "high", "success", "failure")),
        )
        for user_type in evaluation["users"]
        if f"{PREFIX}{user_type}/score" in metrics
    ]
    if not rows:
        return None
    profiles = evaluation["profiles"]
    if profiles != "validation":
        profiles = Path(profiles).name
    measured_with = {
        "preset": evaluation["preset"],
        "simulated users": ", ".join(evaluation["users"].values()),
        "profiles": f"{evaluation['n']} ({profiles}, {evaluation['profiles_hash']})",
        "system prompt": facts.get("prompt"),
        "temperature": facts.get("temperature"),
        "seed": evaluation["seed"],
        "rlver": facts.get("version"),
    }
    return Results("the run's own evaluation, by which its best policy may have been chosen", rows, measured_with)


def model_card(subject: Subject, results: Results | None, *, adapter: bool, base_model: str | None) -> str:
    """The card as Markdown with a YAML header. The license is left to the person who publishes the model."""
    config: Mapping[str, Any] = subject.run.get("config", {})
    algorithm = subject.facts.get("algo")
    header: dict[str, Any] = {
        "language": [subject.facts.get("language") or "en"],
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlver", "dialogue", "empathy", "reinforcement-learning", *([algorithm] if algorithm else [])],
    }
    if base_model:
        header["base_model"] = base_model
    parts = [
        f"---\n# license: choose one before you publish\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {subject.name}",
        _about(subject, base_model or _public_name(config.get("policy")), adapter),
        _use(subject, base_model, adapter),
        _training(subject, config),
        _scores(results),
        _LIMITS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(subject: Subject, base: str | None, adapter: bool) -> str:
    facts = subject.facts
    what = "A LoRA adapter for a dialogue model" if adapter else "A dialogue model"
    start = f", trained from {base}" if base else ""
    if not facts.get("algo"):
        return f"{what} that talks with people who are troubled{start}."
    user = str(facts.get("user", ""))
    users = f"simulated {user.split('/')[1]} users" if user.count("/") >= 2 else "simulated users"
    talks = f"{what} that talks with people who are troubled{start} with {facts['algo'].upper()}"
    if reward := subject.run.get("reward"):
        return f"{talks} in dialogues with {users} (RLVER, arXiv 2507.03112), on the custom reward `{reward}`."
    return (
        f"{talks} on the emotions of {users} (RLVER, arXiv 2507.03112): what a reply did to how the user felt was its "
        "reward."
    )


def _use(subject: Subject, base: str | None, adapter: bool) -> str:
    name = subject.name
    language: Language = "zh" if subject.facts.get("language") == "zh" else "en"
    think = bool(subject.facts.get("think"))
    prompt = system_prompt(language, think)
    thinking = (
        "\n\nIt thinks inside `<think></think>` before it speaks. Remove the thoughts from its replies before you "
        "show them, and before you pass them back as history: in training it never saw its earlier thoughts."
        if think
        else ""
    )
    needs = f" (with `peft` installed, and its base {base or 'model'} at hand)" if adapter else ""
    lines = [
        "## Use",
        "",
        f"With `transformers`{needs}; the system prompt is the one that it was trained with:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f'model = AutoModelForCausalLM.from_pretrained("{name}")',
        "messages = [",
        f'    {{"role": "system", "content": {_quoted(prompt)}}},',
        f'    {{"role": "user", "content": {_quoted(_GREETING[language])}}},',
        "]",
        'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
        "return_dict=True)",
        'reply = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(reply, skip_special_tokens=True))",
        "```",
        "",
        f"`generation_config.json` samples as in training.{thinking}",
        "",
        "With `rlver`:",
        "",
        "```sh",
        f"rlver bench --policy {name} --language {language}   # measure it",
        f"rlver serve --policy {name} --language {language}   # an OpenAI-compatible endpoint",
        "```",
    ]
    return "\n".join(lines)


def _training(subject: Subject, config: Mapping[str, Any]) -> str:
    if not config or not subject.facts.get("algo"):
        return ""
    rows = [f"| {key} | {config[key]} |" for key in _SHOWN if key in config]
    versions = ", ".join(f"{name} {number}" for name, number in subject.run.get("versions", {}).items() if number)
    step = subject.facts.get("step")
    return "\n".join(
        [
            "## Training",
            "",
            f"The policy after step {step} of {config.get('steps')}, with {versions}. "
            f"Simulated user: `{subject.facts.get('user')}`.",
            "",
            "| setting | value |",
            "|---|---|",
            *rows,
        ]
    )


def _scores(results: Results | None) -> str:
    if results is None:
        return "## Score\n\nNot measured. `rlver bench` measures it, and `rlver export --results` adds it to this card."
    lines = [
        "## Score",
        "",
        f"Final emotion of the user, 0-100, with the 95 % interval clustered by profile. Source: {results.source}.",
        "",
        "| | n | score | 95 % | success | failure |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.n} | {row.score:.1f} | {row.low:.1f} to {row.high:.1f} | {row.success:.0%} | "
        f"{row.failure:.0%} |"
        for row in results.rows
    ]
    facts = [f"{name} `{value}`" for name, value in results.facts.items() if value is not None]
    return "\n".join([*lines, "", f"Measured with: {'; '.join(facts)}."])


def _row(name: str, result: PolicyResult) -> Row:
    summary = result.summary
    return Row(name, summary.n, summary.score, *summary.ci95, summary.success, summary.failure)


def _is_folder(spec: str, folder: Path) -> bool:
    return Path(spec.removeprefix("hf:")).resolve() == folder.resolve()


def _public_name(policy: Any) -> str | None:
    """A name for the starting policy that does not reveal where it lies on this machine."""
    if policy == "tiny":
        return "the tiny policy that RLVER pretrains itself"
    return Path(str(policy)).name if policy else None


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
