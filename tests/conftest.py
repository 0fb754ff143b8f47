"""What the tests share: the official data if it is there, and a policy small enough to be checked by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

# The same examples on every machine, and no deadline: a slow core is no bug.
settings.register_profile("rlver", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("rlver")

SENTENCES = [
    "The kettle broke on Monday and my sister laughed at me.",
    "I did not sleep at all, and nobody asked me why.",
    "What happened after she laughed?",
    "我昨天把钥匙弄丢了，心里很乱。",
    "你愿意说说后来怎么样了吗？",
]


@pytest.fixture(autouse=True)
def _no_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget a width that the test runner exports, because it would set the width of what commands print."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def official() -> Path:
    """The folder of the official profiles. Tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("RLVER_DATA") or Path(__file__).parents[2] / "shared" / "data")
    folder = root / "sage" / "profiles"
    if not folder.is_dir():
        pytest.skip("official data not found; set RLVER_DATA")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The project's own kind of tokenizer, trained on a few sentences."""
    from rlver.tiny.tokenizer import train_tokenizer

    return train_tokenizer(SENTENCES)


@pytest.fixture(scope="session")
def model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 model with random weights and grouped key-value heads."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        # With the usual 0.02 all tokens are almost equally likely, and a wrong mask would hardly show.
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        # A likely closing mark: replies end at different lengths, and rows become ragged.
        model.lm_head.weight[tokenizer.eos_token_id] *= 3
    return model.eval()


@pytest.fixture
def policy_folder(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A folder with that model and that tokenizer, as a trained policy has them."""
    folder = tmp_path / "mine"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
