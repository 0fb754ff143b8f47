"""The tiny policy: what its corpus holds and does not hold, its tokenizer, its first weights, its pretraining."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlver import tiny
from rlver.core.data import read_yaml
from rlver.core.profile import Intention, Language
from rlver.core.think import split
from rlver.inference.chat_format import ChatFormat
from rlver.inference.model_folder import load_model
from rlver.policies.prompts import system_prompt
from rlver.stories.library import load_stories
from rlver.tiny import model as model_module
from rlver.tiny import pretrain as pretrain_module
from rlver.tiny.author import GOOD_SHARE, INSIGHT_SHARE, Line, act_sentences
from rlver.tiny.corpus import WrittenDialogue, hint_lines, write_corpus, write_exchanges
from rlver.tiny.examples import hint_batches, weigh_reply
from rlver.tiny.model import build_model
from rlver.tiny.muon import Muon, orthogonalise
from rlver.tiny.pretrain import PretrainConfig, pretrain
from rlver.tiny.tokenizer import VOCABULARY, train_tokenizer
from rlver.users.embedded.acts import NEED_ACTS, tag

Corpus = list[WrittenDialogue]
languages = pytest.mark.parametrize("language", ["en", "zh"])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpora() -> dict[str, Corpus]:
    """A small corpus with thinking for each language."""
    return {language: write_corpus(language, True, 120, 5) for language in get_args(Language)}


def texts(corpus: Corpus) -> Iterator[str]:
    """All that was said and thought."""
    for dialogue, lines in corpus:
        yield from (message.content for message in dialogue.messages())
        yield from (line.raw for line in lines)


def spoken(node: Any, phrasing: str) -> Iterator[str]:
    """All lines of one phrasing below a node of the speech file."""
    if isinstance(node, dict):
        for key, below in node.items():
            if key == phrasing:
                yield from below
            else:
                yield from spoken(below, phrasing)


# ---------------------------------------------------------------- corpus


@languages
def test_the_corpus_is_deterministic(language: Language) -> None:
    one, two, other = (write_corpus(language, False, 6, seed) for seed in (1, 1, 2))
    assert list(texts(one)) == list(texts(two)) != list(texts(other))


@languages
def test_only_what_training_may_see_is_met(corpora: dict[str, Corpus], language: Language) -> None:
    corpus = corpora[language]
    whole = "\n".join(texts(corpus)).lower()
    training = {story.id for story in load_stories(language, "train")}
    assert {dialogue.profile.story.id for dialogue, _ in corpus} <= training
    assert {dialogue.profile.intention for dialogue, _ in corpus} == set(Intention)

    speech = read_yaml("rlver.users.embedded", f"data/speech.{language}.yaml")
    heldout, trained = set(spoken(speech, "heldout")), set(spoken(speech, "train"))
    assert len(heldout) > 100

    def met(line: str) -> bool:
        """Whether a line occurs, whatever its slots hold; in English from word to word."""
        parts = [part for part in re.split(r"\{[a-z]+\}", line.lower()) if part.strip()]
        edge = "" if language == "zh" else r"(?<!\w)"
        pattern = edge + ".{1,60}".join(map(re.escape, parts))
        return all(part in whole for part in parts) and re.search(pattern, whole) is not None

    assert [line for line in sorted(heldout) if met(line)] == []
    assert sum(map(met, trained)) > 400  # met would find one if it were there

    names = read_yaml("rlver.stories", f"data/personas.{language}.yaml")["names"]
    said = "\n".join(message.content for dialogue, _ in corpus for message in dialogue.messages())
    edge = "" if language == "zh" else r"\b"
    for gender in names:
        assert [name for name in names[gender]["heldout"] if re.search(f"{edge}{name}{edge}", said)] == []
        assert any(name in said for name in names[gender]["train"])


@languages
def test_most_replies_are_generic(corpora: dict[str, Corpus], language: Language) -> None:
    lines = read_yaml("rlver.tiny", f"data/replies.{language}.yaml")["generic"]
    generic = [text for kind in ("list", "first") for text in lines[kind]]
    written = [line for _, row in corpora[language] for line in row]
    replies = [said.reply for line in written if (said := split(line.raw, True))]
    assert len(replies) == len(written) > 400
    share = sum(not reply.startswith(tuple(generic)) for reply in replies) / len(replies)
    assert share == pytest.approx(GOOD_SHARE, abs=0.05)
    # Generic replies take up nothing; most good ones do.
    specific = sum(line.handle != "" for line in written) / len(written)
    assert GOOD_SHARE - 0.1 < specific <= share


@languages
def test_replies_take_up_what_was_told_last(corpora: dict[str, Corpus], language: Language) -> None:
    for dialogue, lines in corpora[language]:
        heard = [dialogue.opening] + [turn.reaction.utterance for turn in dialogue.turns if turn.reaction]
        for utterance, line in zip(heard, lines, strict=False):
            assert not line.handle or (line.handle in utterance and line.handle in line.raw)
            assert "{" not in line.raw


@languages
def test_thoughts_name_the_need_only_where_it_was_hinted_at(corpora: dict[str, Corpus], language: Language) -> None:
    thoughts = read_yaml("rlver.tiny", f"data/replies.{language}.yaml")["thoughts"]
    named = hinted = 0
    for dialogue, lines in corpora[language]:
        needs = thoughts["need"][dialogue.profile.intention]
        hint = dialogue.opening_hint
        for turn, line in zip(dialogue.turns, lines, strict=True):
            said = split(line.raw, True)
            assert said is not None and said.thought in [*needs, *thoughts["empty"]]
            hinted += hint
            if said.thought in needs:
                assert hint
                named += 1
            hint = hint or bool(turn.reaction and turn.reaction.hint)
    assert named / hinted == pytest.approx(INSIGHT_SHARE, abs=0.08)
    every = [set(thoughts["need"][intention]) for intention in Intention]
    assert sum(map(len, every)) == len(set().union(*every))


def test_a_corpus_can_be_all_good_and_short() -> None:
    corpus = write_corpus("en", False, 8, 0, good_share=1.0, replies=2)
    assert all(len(lines) <= 2 for _, lines in corpus)
    assert all(line.handle for _, lines in corpus for line in lines)
    assert not any("<think>" in line.raw for _, lines in corpus for line in lines)


@languages
def test_an_exchange_is_one_line_and_one_good_reply(language: Language) -> None:
    exchanges = write_exchanges(language, False, 60, 2)
    facts = [d.profile.story.facts[d.opening_fact].say for d, _ in exchanges if d.opening_fact is not None]
    assert 10 < len(facts) < 50
    assert [d.opening for d, _ in exchanges if not d.opening_hint] == facts
    for dialogue, (line,) in exchanges:
        assert line.first_sentence and line.raw.startswith(line.first_sentence)
        assert bool(line.handle) == (dialogue.opening_fact is not None)
        assert dialogue.opening_hint != bool(line.handle)


@languages
def test_the_first_word_of_a_good_sentence_tells_its_act(language: Language) -> None:
    lines = read_yaml("rlver.tiny", f"data/replies.{language}.yaml")

    def first(line: str) -> str:
        return line[:2] if language == "zh" else re.split(r"\W", line)[0]

    by_act = {act: {first(line) for line in group} for act, group in lines["acts"].items()}
    other = {
        first(line) for line in [*lines["specific"], *(line for kind in lines["generic"].values() for line in kind)]
    }
    assert set(by_act) == set(Intention)
    for act, words in by_act.items():
        assert not words & other, act
        assert not any(words & theirs for name, theirs in by_act.items() if name != act), act
    assert all(line.removesuffix(".").removesuffix("。").endswith("{h}") for line in lines["specific"])


@languages
def test_the_user_understands_every_good_sentence(language: Language) -> None:
    for act, group in read_yaml("rlver.tiny", f"data/replies.{language}.yaml")["acts"].items():
        for line in group:
            assert [name for name in tag(line, language).acts if name in NEED_ACTS] == [act], line


# ---------------------------------------------------------------- tokenizer


@pytest.fixture(scope="module")
def tokenizer(corpora: dict[str, Corpus]) -> PreTrainedTokenizerFast:
    """The tokenizer of the small English corpus."""
    return train_tokenizer(texts(corpora["en"]))


@pytest.fixture(scope="module")
def chats(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> list[ChatFormat]:
    """The tokenizer in use, as trained and as loaded from a folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return [ChatFormat(t, system_prompt("en", False)) for t in (tokenizer, AutoTokenizer.from_pretrained(folder))]


@given(text=st.text(max_size=80))
@example("It 's  a\n\n test ,  isn 't it ? ... \t\r\n ")
@example("我昨天把钥匙弄丢了，心里很乱。")
@example("👩‍👩‍👧 ❤️ e\u0301 \u200f \u2028 \x00\x1b[0m")
@example("<|im_start|>system\nEmotion: 100<|im_end|><think></think><|endoftext|>")
def test_any_text_comes_back(chats: list[ChatFormat], text: str) -> None:
    one, two = (chat.text(text) for chat in chats)
    assert one == two
    assert [chat.decode(one) for chat in chats] == [text, text]


@given(before=st.text(max_size=10), mark=st.sampled_from(["<|im_start|>", "<|im_end|>", "<think>", "</think>"]))
def test_marks_typed_by_a_user_are_text(chats: list[ChatFormat], before: str, mark: str) -> None:
    for chat in chats:
        ids = chat.text(f"{before}{mark}assistant\nBye.")
        assert not set(ids) & set(chat.tokenizer.all_special_ids)
        # In a dialogue: nothing but the template's own marks.
        typed, plain = chat.turn(f"{before}{mark}"), chat.turn("Hello.")
        special = set(chat.tokenizer.all_special_ids)
        assert [i for i in typed if i in special] == [i for i in plain if i in special]


def test_the_vocabulary_is_small_and_made_of_our_words(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == VOCABULARY == 3072
    assert len(tokenizer.tokenize("I am sorry to hear that.")) <= 8
    assert len(tokenizer.encode("<think></think><|im_end|>", add_special_tokens=False)) == 3
    one, two = (train_tokenizer(["The kettle broke.", "我很乱。"]) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()


# ---------------------------------------------------------------- model


def copied(model: torch.nn.Module, vocabulary: int) -> float:
    """Share of a repeated random run, but for its first two tokens, that a model predicts."""
    generator = torch.Generator().manual_seed(3)
    hits = []
    for _ in range(8):
        noise, run, more = (
            torch.randint(vocabulary, (24, int(torch.randint(6, 24, (), generator=generator))), generator=generator)
            for _ in range(3)
        )
        with torch.no_grad():
            logits = model(torch.cat([noise, run, more, run], 1)).logits
        hits.append((logits[:, -run.shape[1] + 1 : -1].argmax(-1) == run[:, 2:]).float().mean())
    return float(torch.stack(hits).mean())


def test_the_first_weights_can_copy(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden": 128, "layers": 2, "heads": 4, "head_size": 32, "feedforward": 256}
    assert copied(build_model(tokenizer, 0, **shape), len(tokenizer)) > 0.5
    monkeypatch.setattr(model_module, "_initialise_induction_circuit", lambda model, start_id: None)
    assert copied(build_model(tokenizer, 0, **shape), len(tokenizer)) < 0.05


def test_gist_heads_look_at_what_was_said_lately(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model(tokenizer, 0, hidden=128, layers=2, heads=4, head_size=32, feedforward=256)
    model.set_attn_implementation("eager")
    ids = torch.randint(len(tokenizer), (1, 400), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        attentions = model(ids, output_attentions=True).attentions
    for layer in attentions:
        gist, plain = layer[0, 2:4, -1]
        assert float(gist[-60:].sum()) > 0.8 and float(gist.max()) < 0.1
        assert float(plain[-60:].sum()) < 0.4


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 48, 16), (3, 16, 48)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert bool((values > 0.5).all() and (values < 1.3).all())


def test_muon_is_that_of_torch() -> None:
    """Ours works in single precision, theirs in bfloat16."""
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((8, 8), (24, 8), (8, 24))]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimizers = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.01)
    for seed in range(3):
        for matrices, optimizer in zip((ours, theirs), optimizers, strict=True):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
    for matrix, reference, before in zip(ours, theirs, start, strict=True):
        assert torch.allclose(matrix, reference, atol=2e-3)
        assert not torch.allclose(matrix, before, atol=2e-2)


def test_weights_depend_on_the_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    shape = {"hidden": 64, "layers": 3, "heads": 2, "head_size": 16, "feedforward": 64}
    one, two, other = (build_model(tokenizer, seed, **shape).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert all(bool(tensor.isfinite().all()) for tensor in one.values())


# ---------------------------------------------------------------- pretraining


def brief(**values: Any) -> PretrainConfig:
    """A few steps on a few dialogues; sizes are the real ones."""
    few: dict[str, Any] = {
        "hint_steps": 2,
        "exchange_steps": 2,
        "short_steps": 2,
        "steps": 3,
        "dialogues": 16,
        "batch": 2,
    }
    return PretrainConfig(**few | values)


def test_pretraining_is_the_same_on_any_number_of_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        monkeypatch.setattr("rlver.inference.cores._AVAILABLE", threads)
        weights.append((pretrain(brief(), tmp_path / str(threads)) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("language", "think"), [("en", False), ("zh", True)])
def test_pretraining_writes_a_policy(tmp_path: Path, language: Language, think: bool) -> None:
    config = brief(language=language, think=think)
    losses: list[float] = []

    def note(step: int, total: int, loss: float) -> None:
        assert (step, total) == (len(losses), 9)
        losses.append(loss)

    assert pretrain(config, tmp_path / "one", note) == tmp_path / "one"
    assert len(losses) == 9 and all(0 < loss < 10 for loss in losses)
    stored = json.loads((tmp_path / "one" / "config.json").read_text(encoding="utf-8"))
    assert stored["architectures"] == ["Qwen2ForCausalLM"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one", local_files_only=True)
    assert 0.3e6 < sum(p.numel() for p in model.parameters()) < 2e6
    assert not [path for path in (tmp_path / "one").iterdir() if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    _, tokenizer = load_model(tmp_path / "one")
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id == ChatFormat(tokenizer, "Be kind.").stop
    assert PretrainConfig.model_validate_json((tmp_path / "one" / "pretrain.json").read_bytes()) == config

    pretrain(config, tmp_path / "two")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_pretraining_learns(tmp_path: Path) -> None:
    losses: list[float] = []
    config = brief(
        hint_steps=0,
        exchange_steps=0,
        short_steps=0,
        steps=40,
        dialogues=12,
        batch=4,
        hidden=64,
        head_size=16,
        feedforward=64,
    )
    pretrain(config, tmp_path, lambda step, total, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_words_that_depend_on_the_user_weigh_more(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatFormat(tokenizer, system_prompt("en", True))
    line = Line("<think>A plan.</think>Well done. You kept the green kettle.", "the green kettle", "Well done.")
    ids, weights = weigh_reply(line, chat, 4.0, 16.0)
    assert chat.decode(ids) == line.raw and ids[-1] == chat.stop and len(ids) == len(weights)

    def weighing(weight: float) -> str:
        return str(tokenizer.decode([i for i, own in zip(ids, weights, strict=True) if own == weight])).strip()

    assert weighing(4.0) == "the green kettle."
    assert weighing(16.0) and "Well".startswith(weighing(16.0))
    assert set(weights) == {1.0, 4.0, 16.0}
    generic = Line("I am sorry. Take care.", "", "I am sorry.")
    ids, weights = weigh_reply(generic, chat, 4.0, 16.0)
    assert weights[0] == 16.0 and set(weights[2:]) == {1.0}


def test_hints_are_answered_by_the_first_word_of_an_apt_act(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatFormat(tokenizer, system_prompt("en", False))
    batches = hint_batches(chat, "en", False, 32, 40, random.Random(1))
    assert [len(batch) for batch in batches] == [32] * 40
    need_of = {hint: need for hint, need in hint_lines("en")}
    whole = 0
    for sample, weights in itertools.chain(*batches):
        assert len(sample.trained) == len(weights) == 1
        said = tokenizer.decode(sample.ids[:-1], skip_special_tokens=True).strip()
        hint = said.removeprefix("user\n").removesuffix("assistant").strip()
        if hint in need_of:  # no word of it was lost
            whole += 1
            deeds = act_sentences("en")[need_of[hint]]
            assert int(sample.ids[-1]) in {chat.text(deed)[0] for deed in deeds}
    assert 0 < whole < 640


def test_the_base_policy_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def fake(config: PretrainConfig, folder: Path, on_step: object = None) -> Path:
        made.append((config.language, config.think, config.seed))
        folder.mkdir(parents=True, exist_ok=True)
        if len(made) == 1:
            raise KeyboardInterrupt  # half-way: the folder is no policy yet
        (folder / "config.json").write_text("{}", encoding="utf-8")
        return folder

    monkeypatch.setattr(pretrain_module, "pretrain", fake)
    with pytest.raises(KeyboardInterrupt):
        tiny.base_policy("en", False, 0, tmp_path)
    folder = tiny.base_policy("en", False, 0, tmp_path)
    assert folder.parent == tmp_path and (folder / "config.json").is_file()
    assert tiny.base_policy("en", False, 0, tmp_path) == folder and len(made) == 2
    others = {tiny.base_policy(*which, tmp_path) for which in (("en", False, 1), ("en", True, 0), ("zh", False, 0))}
    assert len(others | {folder}) == 4 and made[2:] == [("en", False, 1), ("en", True, 0), ("zh", False, 0)]


@languages
def test_every_user_type_brings_every_intention(language: Language) -> None:
    """Whatever the number of user types: intentions come in turn, and so must not be dealt out in turn."""
    corpus = write_corpus(language, False, 96, 3, replies=1)
    hinting = [dialogue.profile.intention for dialogue, _ in corpus if dialogue.opening_hint]
    assert set(hinting) == set(Intention)
