"""The benchmark over real sockets: faults, dead endpoints, kills and changed settings lose nothing and bend nothing."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_server import FAULTS, FakeServer, Model

from rlver.cli.main import main
from rlver.core.transcript import read_transcripts
from rlver.evaluation.log import LoggedDialogue, read_head, read_log
from rlver.formats.profile_files import write_profiles
from rlver.stories import generate
from rlver.version import revision

if TYPE_CHECKING:
    pass

KEY = "sk-verysecret-0123456789"


def command(server: FakeServer, out: Path, *more: str, policy: str = "", user: str = "") -> list[str]:
    spec = f"openai:fake@{server.url}"
    return ["bench", "--policy", policy or spec, "--user", user or spec, "--out", str(out), *more]


def log_of(out: Path) -> Path:
    (path,) = out.glob("1-*.jsonl")
    return path


def dialogues(out: Path) -> dict[tuple[str, int], LoggedDialogue]:
    """The dialogues of a log, after making sure that none stands there twice."""
    found = list(read_log(log_of(out)))
    keys = [(item.transcript.profile, item.repeat) for item in found]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, found, strict=True))


def said(item: LoggedDialogue) -> list[tuple[str, float]]:
    return [(turn.raw, turn.score) for turn in item.transcript.turns]


def test_twenty_percent_faults_neither_lose_nor_bend_anything(tmp_path: Path) -> None:
    with FakeServer(seed=5, stall=60) as server:
        fast = ["--concurrency", "64", "--timeout", "1", "--attempts", "8"]
        assert main(command(server, tmp_path / "clean", *fast)) == 0
        server.faults, server.share = FAULTS, 0.2
        assert main(command(server, tmp_path / "faulty", *fast)) == 0
        assert all(server.calls[fault] > 0 for fault in FAULTS)
    clean, faulty = dialogues(tmp_path / "clean"), dialogues(tmp_path / "faulty")
    assert len(clean) == 100 and clean.keys() == faulty.keys()
    assert all(item.transcript.stop.scored for item in clean.values())
    scored = {key for key, item in faulty.items() if item.transcript.stop.scored}
    assert len(scored) >= 97
    # Stronger than an equal mean: every scored dialogue is, word for word, the one that no fault disturbed.
    assert all(said(faulty[key]) == said(clean[key]) for key in scored)
    results = json.loads((tmp_path / "faulty" / "results.json").read_text("utf-8"))["policies"][0]
    assert results["summary"]["n"] == len(scored) and results["summary"]["errors"] == 100 - len(scored)
    assert sum(results["stops"].values()) == 100
    assert abs(results["summary"]["score"] - sum(c.transcript.score for c in clean.values()) / 100) < 2
    assert all(item.transcript.error for key, item in faulty.items() if key not in scored)


def test_dead_endpoints_and_bad_keys_stop_at_once_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(arguments: list[str]) -> str:
        start = time.monotonic()
        assert main(arguments) == 1
        shown = capsys.readouterr()
        assert time.monotonic() - start < 30 and not shown.out
        assert shown.err.startswith("Error: ") and shown.err.count("\n") == 1
        return shown.err

    dead = "openai:m@http://127.0.0.1:9/v1"
    assert "nothing answers" in fails(["bench", "--policy", dead, "--out", str(tmp_path / "a")])
    monkeypatch.setenv("RLVER_API_KEY", KEY)
    with FakeServer(key="another") as server:
        message = fails(command(server, tmp_path / "b", user="embedded"))
        assert "check the key in RLVER_API_KEY" in message and KEY not in message
    with FakeServer(faults=["stall"], share=1.0) as server:
        server.model = Model()
        assert "--user nobody" in fails(command(server, tmp_path / "c", user="nobody"))


def test_an_endpoint_that_dies_during_a_run_loses_no_finished_dialogue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dying(Model):
        calls = 0

        def __call__(self, request: dict[str, Any]) -> str:
            Dying.calls += 1
            if Dying.calls == 150:
                server.key = "nobody has it"
            return super().__call__(request)

    with FakeServer(Dying()) as server:
        more = ["--n", "12", "--concurrency", "4"]
        assert main(command(server, tmp_path, *more)) == 1
        shown = capsys.readouterr().err
        assert "are kept" in shown and "--resume" in shown and "Traceback" not in shown
        kept = len(dialogues(tmp_path))
        assert 0 < kept < 12
        server.key = None
        assert main(command(server, tmp_path, *more)) == 1
        assert "unfinished" in capsys.readouterr().err
        assert main(command(server, tmp_path, *more, "--resume")) == 0
    assert len(dialogues(tmp_path)) == 12


def test_killed_at_any_moment_and_resumed_the_log_is_that_of_a_whole_run(tmp_path: Path) -> None:
    write_profiles(tmp_path / "profiles.jsonl", generate("en", "validation", 12))
    with FakeServer(latency=0.01) as server:
        more = ["--profiles", str(tmp_path / "profiles.jsonl"), "--repeats", "2", "--concurrency", "6"]
        assert main(command(server, tmp_path / "whole", *more)) == 0
        out = tmp_path / "killed"
        rng = random.Random(1)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        kills = 0
        while kills < 20:
            # A cache of its own for every life, so that nothing but the log carries over.
            life = command(server, out, *more, "--resume", "--cache", str(tmp_path / f"{kills}.sqlite"))
            process = subprocess.Popen(
                [sys.executable, "-m", "rlver", *life], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            began = len(server_lines(out))
            limit = time.monotonic() + 20
            grow = rng.choice((0, 0, 1, 1, 2))
            while process.poll() is None and len(server_lines(out)) < began + grow and time.monotonic() < limit:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            if rng.random() < 0.3 and out.exists():  # a line that was cut off by the kill
                with log_of(out).open("ab") as file:
                    file.write(b'{"kind":"dialogue","repe')
        assert len(server_lines(out)) > 0
        assert main(command(server, out, *more, "--resume")) == 0
    assert log_of(out).read_bytes() == log_of(tmp_path / "whole").read_bytes()
    assert len(dialogues(out)) == 24


def server_lines(out: Path) -> list[bytes]:
    """Whole lines of the log so far."""
    try:
        return log_of(out).read_bytes().split(b"\n")[:-1]
    except (ValueError, FileNotFoundError):
        return []


def test_ctrl_c_loses_no_finished_dialogue(tmp_path: Path) -> None:
    with FakeServer(latency=0.05) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "rlver", *command(server, tmp_path, "--n", "20", "--concurrency", "4")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        limit = time.monotonic() + 30
        while not server_lines(tmp_path)[2:] and time.monotonic() < limit:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=10)
        assert process.returncode == 130 and shown.endswith("Interrupted.\n") and "Traceback" not in shown
        assert 0 < len(dialogues(tmp_path)) < 20
        assert main(command(server, tmp_path, "--n", "20", "--resume")) == 0
    assert len(dialogues(tmp_path)) == 20


def test_changed_settings_are_refused_with_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["bench", "--policy", "scripted:hedge", "--n", "3", "--out", str(tmp_path)]
    assert main(base) == 0
    log = log_of(tmp_path).read_bytes()
    assert main([*base, "--resume"]) == 0 and log_of(tmp_path).read_bytes() == log
    for extra, text in ((["--seed", "4"], "seed was 0 and is 4"), (["--user", "challenging"], "user was 'embedded/van"),
                        (["--preset", "paper"], "preset was 'sage' and is 'paper'")):  # fmt: skip
        capsys.readouterr()
        assert main([*base, *extra, "--resume"]) == 1
        assert text in capsys.readouterr().err
        assert log_of(tmp_path).read_bytes() == log
    assert main([*base[:-1], str(tmp_path), "--resume", "--repeats", "2"]) == 0
    assert len(dialogues(tmp_path)) == 6
    assert log_of(tmp_path).read_bytes().startswith(log[: log.rindex(b'{"kind":"end"')])
    profiles = generate("en", "validation", 3)
    write_profiles(tmp_path / "p.jsonl", profiles)
    other = [
        "bench",
        "--policy",
        "scripted:hedge",
        "--profiles",
        str(tmp_path / "p.jsonl"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(other) == 0
    write_profiles(tmp_path / "p.jsonl", [p.model_copy(update={"opening": "Hi."}) for p in profiles])
    capsys.readouterr()
    assert main([*other, "--resume"]) == 1 and "another profile" in capsys.readouterr().err
    assert main(other) == 0 and log_of(tmp_path / "o").with_name(log_of(tmp_path / "o").name + ".bak").exists()


def test_the_log_says_how_it_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as server:
        more = ["--n", "3", "--temperature", "0.3", "--max-tokens", "99", "--user-type", "challenging", "--votes", "3"]
        server.keep_requests = True
        assert main(command(server, tmp_path, *more)) == 0
        sampled = [r for r in server.requests if "response_format" not in r]
        assert all(r["temperature"] == 0.3 and r["max_tokens"] == 99 and "seed" in r for r in sampled)
    head = read_head(log_of(tmp_path))
    assert head.config.policy == f"openai:fake@{server.url}" and head.config.temperature == 0.3
    assert head.config.user_settings["votes"] == 3 and head.config.user_settings["judge_temperature"] == 0.0
    assert {"rlver", "python", "openai"} <= set(head.versions)
    assert head.versions.get("revision", "") == revision()
    assert "/challenging/en@" in head.config.user and len(head.hash) == len(head.config.prompt) == 8
    item = next(iter(dialogues(tmp_path).values()))
    tokens = item.usage[head.config.policy]
    assert tokens.calls == len(item.transcript.turns) * 5 + 1 and tokens.input > 0 < tokens.output
    assert read_transcripts(log_of(tmp_path))[0] == item.transcript
    shown = capsys.readouterr()
    assert "answers" in shown.out and "cost $0.0000" in shown.out
    assert "3/3: mean" in shown.err


def test_a_local_policy_with_a_remote_user_and_the_other_way_round(tmp_path: Path) -> None:
    with FakeServer() as server:
        assert main(command(server, tmp_path / "a", "--n", "3", policy="scripted:hedge")) == 0
        assert main(command(server, tmp_path / "b", "--n", "3", user="challenging")) == 0
    results = [json.loads((tmp_path / name / "results.json").read_text("utf-8")) for name in "ab"]
    assert results[0]["policies"][0]["fit"] is None and results[1]["policies"][0]["fit"] is not None
    assert results[1]["user"].startswith("embedded/challenging/en/heldout")


def test_no_key_in_any_file_or_output_or_process_title(tmp_path: Path) -> None:
    with FakeServer(key=KEY, faults=FAULTS, share=0.2, stall=1.0, latency=0.02) as server:
        life = command(server, tmp_path / "out", "--n", "4", "--timeout", "0.5")
        process = subprocess.Popen(
            [sys.executable, "-m", "rlver", *life],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RLVER_API_KEY": KEY, "OPENAI_LOG": "debug"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        titles = set()
        while process.poll() is None:
            if (title := Path(f"/proc/{process.pid}/cmdline")).exists():
                titles.add(title.read_bytes())
            time.sleep(0.05)
        out, err = process.communicate()
        assert process.returncode == 0, err
        server.key = "changed"
        failed = subprocess.run(
            [sys.executable, "-m", "rlver", *life[:-2], "--resume"], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RLVER_API_KEY": KEY},
        )  # fmt: skip
    assert failed.returncode == 1
    written = [file.read_bytes() for file in (tmp_path / "out").iterdir()]
    assert len(written) >= 4 and titles
    for text in (*written, *titles, (out + err + failed.stdout + failed.stderr).encode()):
        assert KEY.encode() not in text and b"verysecret" not in text


def test_a_folder_with_a_model_can_face_a_model_as_user(policy_folder: Path, tmp_path: Path) -> None:
    runs = []
    with FakeServer() as server:
        for name, concurrency in (("a", "3"), ("b", "8")):
            more = ["--n", "5", "--max-tokens", "8", "--temperature", "1", "--concurrency", concurrency]
            assert main(command(server, tmp_path / name, *more, policy=f"hf:{policy_folder}")) == 0
            runs.append({key: said(item) for key, item in dialogues(tmp_path / name).items()})
    assert runs[0] == runs[1] and len(runs[0]) == 5


def test_a_person_can_be_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["I am sad.", "high", "20", "5", "Go on.", "-3.5", "Bye."]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(answers) + "\n"))
    bench = ["bench", "--policy", "scripted:hedge", "--user", "human", "--n", "1", "--out", str(tmp_path)]
    assert main(bench) == 0
    (item,) = dialogues(tmp_path).values()
    assert item.transcript.stop == "farewell" and item.transcript.score == 41.5 and item.transcript.user == "human"
    assert "You want, without saying so" in capsys.readouterr().err


def test_nothing_scored_is_an_error_and_the_log_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(faults=["no_json"], share=1.0) as server:
        assert main(command(server, tmp_path, "--n", "2", policy="scripted:hedge")) == 1
        assert "none of the 2 dialogues can be scored" in capsys.readouterr().err
        assert {item.transcript.stop for item in dialogues(tmp_path).values()} == {"unreadable"}
        # What was unreadable is not in the cache: a second life asks anew.
        server.share = 0.0
        assert main(command(server, tmp_path, "--n", "2", "--resume", policy="scripted:hedge")) == 0
    assert all(item.transcript.stop.scored for item in dialogues(tmp_path).values())
