"""The model card of an exported policy: what it is, how to use it, how it was trained, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from rlver.core.errors import RlverError
from rlver.core.files import read_file
from rlver.core.jsonl import read_objects
from rlver.evaluation.results import BenchmarkResults, PolicyResult
from rlver.policies.prompts import system_prompt
from rlver.train.runs.run_folder import read_json
from rlver.train.runs.validation import PREFIX

_SHOWN = (
    "algo", "credit", "user", "preset", "steps", "batch", "group", "epochs", "minibatches", "lr", "warmup",
    "final_rate", "kl", "entropy", "clip", "gamma", "temperature", "max_tokens", "seed",
)  # fmt: skip

_HELLO = {"en": "I had a fight with my sister and now I cannot sleep.", "zh": "我跟妹妹吵了一架，现在睡不着。"}

_LIMITS = """## Limits

- Its rewards and its scores come from *simulated* users: from programs or language models that play people. How real
  people would feel about it was not measured. Scores of different simulators, presets or versions do not compare.
- It is no therapist and gives no medical, legal or crisis advice. In an emergency, people need people.
- A model that is rewarded for how somebody feels may learn to please rather than to help: check for flattery and for
  agreement with what is not true before you let it talk with anybody.
- It was trained in one language, on short talks about everyday troubles."""


class Subject(NamedTuple):
    """Whom the card is about."""

    name: str
    note: Mapping[str, Any]
    """Its `rlver.json`."""
    run: Mapping[str, Any]
    """The `config.json` of its run; empty if there is none."""


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
    """By what."""
    rows: Sequence[Row]
    """Of several policies, or of one with several kinds of users."""
    facts: Mapping[str, Any]
    """What the scores depend on."""


def read_results(file: Path, policy: Path) -> Results:
    """The results of `rlver bench`.

    Raises:
        RlverError: the file cannot be read, or the policy is not among those that it is about.
    """
    try:
        found = BenchmarkResults.model_validate_json(read_file(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RlverError(f"{file}: these are no results of `rlver bench` ({where}: {first['msg']}).") from None
    mine = [result for result in found.policies if _is_folder(result.policy, policy)]
    if not mine:
        names = ", ".join(result.policy for result in found.policies)
        raise RlverError(f"{file}: is about {names}, and not about {policy}; measure it with rlver bench.")
    base = [result for result in found.policies if _is_folder(result.policy, policy.parent / "base")]
    rows = [_row("this policy", mine[0]), *(_row("what it was trained from", result) for result in base)]
    rows += [_row(result.policy, result) for result in found.policies if result.policy.startswith("scripted:")]
    facts = {
        "preset": found.preset,
        "simulated user": found.user,
        "profiles": f"{found.n} ({found.profiles if found.profiles == 'built-in' else Path(found.profiles).name}, "
        f"{found.profiles_hash})",
        "dialogues per profile": found.repeats,
        "system prompt": mine[0].prompt,
        "temperature": mine[0].temperature,
        "seed": found.seed,
        "rlver": found.rlver,
    }
    return Results("`rlver bench`", rows, facts)


def own_results(run: Path | None, note: Mapping[str, Any]) -> Results | None:
    """The run's own evaluation of the policy at that step; None if there was none."""
    facts = read_json(run / "config.json").get("evaluation") if run else None
    if run is None or not facts or not (run / "metrics.jsonl").is_file():
        return None
    metrics = next((line for _, line in read_objects(run / "metrics.jsonl") if line["step"] == note.get("step")), {})
    rows = [
        Row(
            f"{user} users",
            facts["n"],
            *(metrics[f"{PREFIX}{user}/{name}"] for name in ("score", "low", "high", "success", "failure")),
        )
        for user in facts["users"]
        if f"{PREFIX}{user}/score" in metrics
    ]
    if not rows:
        return None
    profiles = facts["profiles"] if facts["profiles"] == "validation" else Path(facts["profiles"]).name
    shown = {
        "preset": facts["preset"],
        "simulated users": ", ".join(facts["users"].values()),
        "profiles": f"{facts['n']} ({profiles}, {facts['profiles_hash']})",
        "system prompt": note.get("prompt"),
        "temperature": note.get("temperature"),
        "seed": facts["seed"],
        "rlver": note.get("version"),
    }
    return Results("the run's own evaluation, by which its best policy may have been chosen", rows, shown)


def model_card(subject: Subject, results: Results | None, *, adapter: bool, base_model: str | None) -> str:
    """The card, as Markdown with a YAML header. The license is left to whoever publishes it."""
    config: Mapping[str, Any] = subject.run.get("config", {})
    algorithm = subject.note.get("algo")
    header: dict[str, Any] = {
        "language": [subject.note.get("language") or "en"],
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlver", "dialogue", "empathy", "reinforcement-learning", *([algorithm] if algorithm else [])],
    }
    if base_model:
        header["base_model"] = base_model
    parts = [
        f"---\n# license: choose one before you publish\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {subject.name}",
        _about(subject, base_model or _plain_name(config.get("policy")), adapter),
        _use(subject, base_model, adapter),
        _training(subject, config),
        _scores(results),
        _LIMITS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(subject: Subject, base: str | None, adapter: bool) -> str:
    note = subject.note
    what = "A LoRA adapter for a dialogue model" if adapter else "A dialogue model"
    start = f", trained from {base}" if base else ""
    if not note.get("algo"):
        return f"{what} that talks with people who are troubled{start}."
    user = str(note.get("user", ""))
    kind = f"{user.split('/')[1]} users" if user.count("/") >= 2 else "users"
    return (
        f"{what} that talks with people who are troubled{start} with {note['algo'].upper()} on the emotions of "
        f"simulated {kind} (RLVER, arXiv 2507.03112): what a reply did to how the user felt was its reward."
    )


def _use(subject: Subject, base: str | None, adapter: bool) -> str:
    note, name = subject.note, subject.name
    think = bool(note.get("think"))
    prompt = system_prompt(note.get("language") or "en", think)
    thinking = (
        "\n\nIt thinks inside `<think></think>` before it speaks. Cut the thoughts out of its replies before you show "
        "them, and before you give them back as history: in training it never saw its earlier thoughts."
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
        f'    {{"role": "user", "content": {_quoted(_HELLO[note.get("language") or "en"])}}},',
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
        f"rlver bench --policy {name} --language {note.get('language', 'en')}   # measure it",
        f"rlver serve --policy {name} --language {note.get('language', 'en')}   # an OpenAI-compatible endpoint",
        "```",
    ]
    return "\n".join(lines)


def _training(subject: Subject, config: Mapping[str, Any]) -> str:
    if not config or not subject.note.get("algo"):
        return ""
    rows = [f"| {key} | {config[key]} |" for key in _SHOWN if key in config]
    versions = ", ".join(f"{name} {number}" for name, number in subject.run.get("versions", {}).items())
    step = subject.note.get("step")
    return "\n".join(
        [
            "## Training",
            "",
            f"The policy after step {step} of {config.get('steps')}, with {versions}. "
            f"Simulated user: `{subject.note.get('user')}`.",
            "",
            "| setting | value |",
            "|---|---|",
            *rows,
        ]
    )


def _scores(results: Results | None) -> str:
    if results is None:
        return "## Score\n\nNot measured. `rlver bench` measures it, and `rlver export --results` puts it here."
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
    found = result.summary
    return Row(name, found.n, found.score, *found.ci95, found.success, found.failure)


def _is_folder(spec: str, folder: Path) -> bool:
    return Path(spec.removeprefix("hf:")).resolve() == folder.resolve()


def _plain_name(policy: Any) -> str | None:
    """What the starting policy can be called before others; where it lies on this machine is nobody's business."""
    if policy == "tiny":
        return "the tiny policy that RLVER pretrains itself"
    return Path(str(policy)).name if policy else None


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
