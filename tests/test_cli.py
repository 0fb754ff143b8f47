"""The command line: what each command prints and writes, and one clear sentence for each bad input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from fake_server import FakeServer

from rlver.cli.main import app, main
from rlver.cli.progress import Steps
from rlver.cli.train import base_of
from rlver.core.transcript import read_transcripts
from rlver.formats.profile_files import read_profiles
from rlver.stories import benchmark_profiles


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with exit code 1 and one line on standard error, which is returned."""
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("Error: ")
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.fixture
def profiles_file(tmp_path: Path) -> Path:
    path = tmp_path / "profiles.jsonl"
    assert main(["profiles", "generate", "--n", "9", "--seed", "3", "--split", "validation", "--out", str(path)]) == 0
    return path


def test_bench_makes_a_table_transcripts_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["bench", "--policy", "scripted:generic", "--policy", "scripted:oracle", "--n", "4", "--repeats", "2"]
    assert main([*arguments, "--out", str(out), "--matrix", "--groups"]) == 0
    shown = capsys.readouterr().out
    assert "avoidant" in shown and "failure %" in shown
    assert "scripted:oracle" in shown and str(out / "results.json") in shown and "none" in shown
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (found["version"], found["preset"], found["n"], found["repeats"], found["seed"]) == (1, "sage", 4, 2, 0)
    assert found["user"].startswith("embedded/vanilla/en/heldout@")
    generic, oracle = found["policies"]
    assert oracle["summary"]["score"] > generic["summary"]["score"]
    assert generic["fluent"] >= 0.95
    transcripts = read_transcripts(Path(oracle["transcripts"]))
    assert len(transcripts) == 8 == oracle["summary"]["n"]
    header, *lines = [line.split(",") for line in (out / "timing.csv").read_text("utf-8").splitlines()]
    assert header == ["log", "profile", "repeat", "ended", "seconds"] and len(lines) == 16
    logs = {Path(policy["transcripts"]).name for policy in (generic, oracle)}
    assert {line[0] for line in lines} == logs and all(float(line[4]) > 0 for line in lines)


def test_bench_prints_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], profiles_file: Path) -> None:
    capsys.readouterr()
    arguments = ["bench", "--policy", "scripted:random", "--profiles", str(profiles_file), "--user-type", "challenging"]
    assert main([*arguments, "--json", "--preset", "paper", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 9 and found["preset"] == "paper" and found["user"].startswith("embedded/challenging")
    assert found["policies"][0]["fluent"] is None
    assert main([*arguments, "--json", "--preset", "paper", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_chat_shows_how_replies_were_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    profile = benchmark_profiles("en")[0]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nIt was not your fault, you did nothing wrong.\nGo away.\n"))
    assert main(["chat", "--profile", profile.id, "--seed", "1"]) == 0
    shown = capsys.readouterr().out
    assert "1/9" in shown and "3/9" in shown
    assert "you left the dialogue" in shown
    assert profile.intention.meaning in shown
    assert "Emotion 40 -> " in shown and "it is only a sentence or two" in shown


def test_chat_to_the_end_says_why_it_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("no\n" * 9))
    assert main(["chat", "--language", "zh", "--user", "challenging", "--seed", "5"]) == 0
    shown = capsys.readouterr().out
    assert "the user left" in shown
    assert "只有一两句话" in shown and "brief" not in shown  # the reasons are in the language of the dialogue


def test_commands_in_a_chat_are_no_replies(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n/halp\n/quit\nHello.\n"))
    assert main(["chat", "--seed", "5"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Type your reply to the user and press Enter.") == 2
    assert "2/9" not in shown and "you left the dialogue" in shown and "Emotion: 40 -> 40" in shown


def test_chat_with_a_model_as_the_user(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("I am listening.\n/quit\n"))
    with FakeServer() as server:
        assert main(["chat", "--user", f"openai:fake@{server.url}", "--seed", "5"]) == 0
    shown = capsys.readouterr().out
    assert "2/9" in shown and "The user thinks: " in shown
    assert "choose another user" in fails(["chat", "--user", "human"], capsys)


def test_profiles_list_show_validate(profiles_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["profiles", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [item["id"] for item in listed] == [profile.id for profile in benchmark_profiles("en")]
    assert main(["profiles", "list", str(profiles_file), "--n", "2"]) == 0
    ids = [profile.id for profile in read_profiles(profiles_file)]
    shown = capsys.readouterr().out
    assert ids[0] in shown and ids[2] not in shown

    for extra in ([], [str(profiles_file)]):
        assert main(["profiles", "show", ids[5], *extra, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == read_profiles(profiles_file)[5].model_dump(mode="json")
    assert main(["profiles", "show", ids[5]]) == 0
    assert read_profiles(profiles_file)[5].intention.meaning in capsys.readouterr().out

    assert main(["profiles", "validate", str(profiles_file), "--json"]) == 0
    (counts,) = json.loads(capsys.readouterr().out)
    assert counts["profiles"] == 9 and sum(counts["by_intention"].values()) == 9
    assert main(["profiles", "validate", str(profiles_file), str(profiles_file)]) == 0
    shown = capsys.readouterr().out
    assert "intention absolve" in shown and shown.count(str(profiles_file)) == 2


def test_broken_profile_files_are_named_with_their_line(
    profiles_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    lines = profiles_file.read_text(encoding="utf-8").splitlines()
    broken = {
        "this line is not valid JSON": lines[1][:40],
        "intention": lines[1].replace(f'"intention":"{json.loads(lines[1])["intention"]}"', '"intention":"money"'),
        "must be a JSON object": "[1]",
        "ids must be unique": lines[0],
    }
    for what, line in broken.items():
        profiles_file.write_text("\n".join([lines[0], line, *lines[2:]]), encoding="utf-8")
        for command in (
            ["profiles", "validate"],
            ["profiles", "list"],
            ["bench", "--policy", "scripted:hedge", "--profiles"],
        ):
            message = fails([*command, str(profiles_file)], capsys)
            assert f"{profiles_file}:2" in message and what in message
    profiles_file.write_text("\n", encoding="utf-8")
    assert "no profiles" in fails(["bench", "--policy", "scripted:hedge", "--profiles", str(profiles_file)], capsys)
    missing = str(profiles_file.with_name("missing.jsonl"))
    assert missing in fails(["profiles", "validate", missing], capsys)


def test_bad_policies_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bench(spec: str) -> str:
        return fails(["bench", "--policy", spec, "--n", "1", "--out", str(tmp_path / "out")], capsys)

    assert "choose one of absolve" in bench("scripted:kind")
    assert "did you mean scripted:oracle" in bench("oracle")
    missing = str(tmp_path / "nowhere")
    assert missing in bench(missing) and missing in bench(f"hf:{missing}")
    assert not (tmp_path / "out").exists()
    (tmp_path / "rlver.json").write_text('{"language": "zh", "think": true}', encoding="utf-8")
    assert "'zh'" in bench(str(tmp_path))
    (tmp_path / "rlver.json").write_text("{", encoding="utf-8")
    assert "rlver.json" in bench(str(tmp_path))
    (tmp_path / "rlver.json").write_text('{"think": false}', encoding="utf-8")
    assert "config.json is missing" in bench(str(tmp_path))


def test_other_bad_input_gets_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], profiles_file: Path
) -> None:
    capsys.readouterr()
    bench = ["bench", "--policy", "scripted:hedge", "--out", str(tmp_path / "out")]
    assert "sage, release, paper" in fails([*bench, "--preset", "hard"], capsys)
    assert "sage, release, paper" in fails(["chat", "--preset", "hard"], capsys)
    assert "only 9" in fails([*bench, "--profiles", str(profiles_file), "--n", "10"], capsys)
    assert "--language en" in fails([*bench, "--profiles", str(profiles_file), "--language", "zh"], capsys)
    assert "no profile 'nobody'" in fails(["chat", "--profile", "nobody"], capsys)
    assert "no profile" in fails(["profiles", "show", "en-train-0-0001-nothing"], capsys)
    assert "--language en" in fails(["chat", "--language", "zh", "--profile", benchmark_profiles("en")[0].id], capsys)
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    assert str(blocked) in fails([*bench[:3], "--n", "1", "--out", str(blocked)], capsys)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("bench", "`rlver bench` needs --policy; `rlver bench --help` explains its use."),
        ("bench --polcy x", "`rlver bench` has no option --polcy; did you mean --policy?"),
        ("bench --policy", "--policy needs a value."),
        ("bench --policy x --language fr", "`rlver bench`: --language: 'fr' is not one of 'en', 'zh'."),
        ("bench --policy x --xyz", "`rlver bench` has no option --xyz; `rlver bench --help` explains its use."),
        ("judge score x --user vanilla", "`rlver judge score` has no option --user; did you mean --user-type?"),
        ("judge score", "`rlver judge score` needs FILE; `rlver judge score --help` explains its use."),
        ("profiles show", "`rlver profiles show` needs ID; `rlver profiles show --help` explains its use."),
        ("profiles lst", "`rlver profiles` has no command 'lst'; did you mean list?"),
        ("trian", "`rlver` has no command 'trian'; did you mean train?"),
        ("--versoin", "`rlver` has no option --versoin; did you mean --version?"),
        ("export a b --out c", "`rlver export`: got unexpected extra argument(s) (b); `rlver export --help` explains "
         "its use."),
    ],
)  # fmt: skip
def test_wrong_usage_gets_one_sentence(arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == f"Error: {sentence}\n"


@pytest.mark.parametrize("arguments", ["bench --policy x --n 0", "bench --policy x --n many"])
def test_a_wrong_value_names_its_option(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The words behind it are the parser's own, and differ between its versions."""
    assert main(arguments.split()) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Error: `rlver bench`: --n") and shown.count("\n") == 1 and shown.endswith(".\n")


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles"]) == 2
    shown = capsys.readouterr()
    assert "validate" in shown.out + shown.err and "Error" not in shown.err


@pytest.mark.parametrize("command", ["train", "demo"])
def test_without_torch_the_error_says_how_to_install_it(command: str, tmp_path: Path) -> None:
    code = """
import sys

class NoTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
from rlver.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    # In a process of its own: this one has torch, and other tests have modules that use it.
    done = subprocess.run(
        [sys.executable, "-c", code, command],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "PyTorch, which is not installed; run: pip install torch" in done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


def test_leaving_a_benchmark_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello.\n"))
    assert main(["bench", "--policy", "human", "--n", "2", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("Interrupted.\n")


def test_the_module_runs_fast_and_without_torch() -> None:
    code = "import sys, rlver.cli.main; raise SystemExit('torch' in sys.modules)"
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0
    shown = subprocess.run(
        [sys.executable, "-m", "rlver", "--version"], env=environment, timeout=60, capture_output=True, text=True
    )
    assert shown.returncode == 0 and shown.stdout.startswith("rlver ")
    failed = subprocess.run(
        [sys.executable, "-m", "rlver", "bench", "--policy", "scripted:x"],
        env=environment, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert failed.returncode == 1 and failed.stderr.startswith("Error: ") and "Traceback" not in failed.stderr


@pytest.mark.parametrize("command", ["train", "demo", "bench"])
def test_a_missing_device_is_reported_before_any_work(
    command: str, tmp_path: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = str(policy_folder) if command == "bench" else "tiny"
    assert main([command, "--policy", policy, "--device", "gpu", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("Error: device 'gpu' cannot be used here")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [80, 120, None])
def test_no_table_folds_or_crops_an_id(
    width: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a terminal of any width, and in a pipe, an id can be copied: it is whole and on one line."""
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    name = "a-policy-with-a-name-that-is-as-long-as-the-path-of-a-run-mostly-is-or-longer-than-that"
    runs = [tmp_path / f"{name}-{number}" for number in (1, 2)]
    for run in runs:
        assert main(["bench", "--policy", "scripted:hedge", "--n", "8", "--out", str(run)]) == 0
    logs = [next(run.glob("1-*.jsonl")) for run in runs]
    for log in logs:
        log.write_text(log.read_text("utf-8").replace('"scripted:hedge"', json.dumps(f"{log.parent}")), "utf-8")
    profiles = benchmark_profiles("en")[:20]
    capsys.readouterr()
    for command, ids in (
        (["profiles", "list", "--n", "20"], [profile.id for profile in profiles]),
        (["leaderboard", *map(str, logs)], list(map(str, runs))),
        (["rejudge", *map(str, logs), "--user", "embedded", "--n", "3"], list(map(str, runs))),
        (["judge", "explain", str(logs[0])], ["mood", "intention"]),
    ):
        assert main(command) == 0
        lines = capsys.readouterr().out.splitlines()
        for id_ in ids:
            assert any(id_ in line.split() for line in lines), (command, id_)
        if width and command[0] == "profiles":
            assert all(len(line) <= width for line in lines)


def test_work_in_a_pipe_reports_in_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("rlver.cli.progress.time.monotonic", lambda: now)
    with Steps("Training", each=True) as steps:
        for step in (3, 4, 5):  # an earlier run did the first two
            steps.update(step, 5, "emotion 40")
            steps.note("evaluating")
            now += 200
    assert capsys.readouterr().err.splitlines() == [
        "Training 3/5: emotion 40",
        "Training 4/5: emotion 40, about 3 min left",
        "Training 5/5: emotion 40",
    ]
    with Steps("Dialogues") as steps:
        for step in range(1, 101):
            steps.update(step, 100)
            now += 1
    assert capsys.readouterr().err.splitlines() == [
        "Dialogues 4/100: about 2 min left",
        "Dialogues 24/100: about 76 s left",
        "Dialogues 44/100: about 56 s left",
        "Dialogues 64/100: about 36 s left",
        "Dialogues 84/100: about 16 s left",
        "Dialogues 100/100",
    ]


def test_pretraining_is_announced_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlver import tiny
    from rlver.train.config import TrainConfig

    def pretend(language: str, think: bool, seed: int, *, on_step: Any) -> Path:
        folder = tiny.tiny_folder("en", think, seed)
        folder.mkdir(parents=True, exist_ok=True)
        on_step(899, 900, 0.5)
        return folder

    monkeypatch.setattr(tiny, "base_policy", pretend)
    monkeypatch.chdir(tmp_path)
    folder = base_of(TrainConfig(seed=3))
    first, *lines = capsys.readouterr().err.splitlines()
    assert folder == tiny.tiny_folder("en", False, 3)
    assert first.startswith("The tiny policy is pretrained first") and f"kept in {folder} " in first
    assert lines == ["Pretraining the tiny policy 900/900: loss 0.50"]
    base_of(TrainConfig(seed=3))
    assert "pretrained first" not in capsys.readouterr().err


def test_no_other_library_draws_bars_into_a_log(policy_folder: Path, tmp_path: Path) -> None:
    """transformers draws one for every model that it loads or saves."""
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    settings = ["--set", "batch=4", "--set", "group=2", "--set", "max_tokens=8", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "rlver", "train", "--policy", str(policy_folder), "--steps", "2", *settings]
    log = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
    assert log.returncode == 0, log.stderr
    assert [line[:30] for line in log.stderr.splitlines()] == [
        f"Training (grpo, turn credit) {step}" for step in (1, 2)
    ]
    assert "\r" not in log.stdout + log.stderr


def test_shell_completion_is_offered() -> None:
    environment = {
        **os.environ,
        "_RLVER_COMPLETE": "complete_bash",
        "COMP_WORDS": "rlver bench --pre",
        "COMP_CWORD": "2",
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "rlver"]
    for words, offers in (
        ("rlver bench --pre", {"--preset"}),
        ("rlver lead", {"leaderboard"}),
        ("rlver bench --user chal", {"challenging"}),
        ("rlver bench --preset r", {"release"}),
        ("rlver bench --user-type v", {"vanilla"}),
    ):
        count = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        shown = subprocess.run(command, env=environment | count, timeout=60, capture_output=True, text=True)
        assert set(shown.stdout.split()) == offers, shown


def test_help_swallows_no_word_and_breaks_no_line_early(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Markup would take what stands in brackets for its own, and keep the lines of the source."""
    monkeypatch.setenv("COLUMNS", "500")
    seen = 0
    for names, command in leaves(typer.main.get_command(app)):
        assert main([*names, "--help"]) == 0
        rows = [plain(row) for row in capsys.readouterr().out.splitlines()]
        assert all(plain(paragraph) in rows for paragraph in command.help.split("\n\n")), names
        for parameter in command.params:
            words = plain(getattr(parameter, "help", None) or "")
            assert any(words in row for row in rows), (names, words)
            seen += bool(words)
    assert seen > 100


def leaves(command: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands without subcommands, with the words that lead there."""
    below = getattr(command, "commands", None)
    if below is None:
        yield names, command
        return
    for name, part in below.items():
        yield from leaves(part, (*names, name))


def plain(text: str) -> str:
    """Without marks for code, and with one space between words."""
    return " ".join(text.replace("`", "").split())
