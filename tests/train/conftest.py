"""Fixtures of the tests of training: a tokenizer, models that speak, their folders, and whole runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import (
    LINES,
    SENTENCES,
    quick,
    save,
    taught,
)
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from rlver.cli.main import main
from rlver.tiny.tokenizer import train_tokenizer
from rlver.train.runs.training_run import run


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A tokenizer of a few hundred pieces, to which every word of ours is one piece."""
    return train_tokenizer(SENTENCES + 2 * LINES)


@pytest.fixture(scope="session")
def speakers(words: PreTrainedTokenizerFast) -> dict[bool, Qwen2ForCausalLM]:
    """A model that speaks, and one that thinks before it speaks."""
    torch.set_num_threads(1)
    return {think: taught(words, think) for think in (False, True)}


@pytest.fixture(scope="session")
def base(speakers: Any, words: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy that does not think."""
    return save(words, speakers[False], tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def thinker(speakers: Any, words: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy that thinks."""
    return save(words, speakers[True], tmp_path_factory.mktemp("thinker"))


@pytest.fixture(scope="session")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs of both algorithms."""
    folders = {}
    for algo in ("grpo", "ppo"):
        folders[algo] = tmp_path_factory.mktemp("whole") / algo
        assert run(quick(base, algo), base, folders[algo]) == folders[algo] / "policy"
    return folders


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `rlver train` with arguments that must be refused with exit code 1 and one sentence, which is returned."""

    def call(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["train", "--out", str(tmp_path / "out"), *arguments]) == 1
        shown = capsys.readouterr()
        # Loading a model may have shown its progress before.
        sentence = shown.err.splitlines()[-1]
        assert shown.out == "" and sentence.startswith("Error: ")
        assert not (tmp_path / "out" / "config.json").exists()
        return sentence

    return call


@pytest.fixture
def half(base: Path, whole: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the PPO run whose last checkpoint is gone."""
    folder = tmp_path / "half"
    shutil.copytree(whole["ppo"], folder)
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    return folder
