"""A local Hugging Face causal language model as a policy, with the exact ids and log-probabilities of its replies."""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, finalize

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlver.core.dialogue import Dialogue, Reply, TokenRecord
from rlver.core.errors import RlverError
from rlver.core.profile import Language
from rlver.inference.chat_format import ChatFormat
from rlver.inference.chat_template import tokenizer_name
from rlver.inference.cores import Cores
from rlver.inference.engines.base import Engine, Sampling
from rlver.inference.engines.built_in import BuiltInEngine
from rlver.inference.exactness import check_model
from rlver.policies.prompts import prompt_hash, system_prompt


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Ids at which the model's own generation config stops."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else [int(end) for end in ends]


@dataclass
class _Conversation:
    """The engine's conversation that belongs to a dialogue."""

    engine: Engine
    number: int | None = None
    """The engine's number of the conversation; None while the engine holds nothing of the dialogue."""
    held: TokenRecord | None = None
    """The last reply that the engine has sampled. It holds the prompt and the ids of this reply."""
    sampled: list[TokenRecord] = field(default_factory=list)
    """All replies that the engine has sampled for the dialogue."""
    sampling: bool = False
    """Whether a reply is being sampled."""

    def end(self) -> None:
        """End the engine's conversation. The next reply begins a new one."""
        if self.number is not None:
            self.engine.end(self.number)
            self.number = self.held = None

    def find(self, tokens: TokenRecord | None) -> TokenRecord | None:
        """The given record if it was sampled here, else None."""
        return next((record for record in self.sampled if record is tokens), None)


class LocalPolicy:
    """Replies with a causal language model and records what it samples as token ids. See `Policy` for its methods.

    The token ids of a dialogue only grow: a reply enters later contexts with the ids that were sampled, or, in think
    mode, without its thoughts.

    Args:
        spec: the name under which results are kept.
        max_tokens: largest number of tokens of one reply, thinking included. A longer reply is cut.
        engine: samples the replies; by default the built-in engine.
        cores: CPU cores of the built-in engine.

    Raises:
        RlverError: tokenizer and model do not fit, the chat template is not append-only, or the model cannot be sampled
            from exactly.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        language: Language,
        *,
        think: bool = False,
        spec: str = "local",
        max_tokens: int = 64,
        temperature: float = 1.0,
        engine: Engine | None = None,
        cores: Cores | None = None,
    ) -> None:
        self.model = model
        embeddings = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > embeddings:
            raise RlverError(
                f"{tokenizer_name(tokenizer)}: this tokenizer has {len(tokenizer)} entries, but the model has only "
                f"{embeddings}; use the tokenizer that belongs to the model."
            )
        self.chat = ChatFormat(tokenizer, system_prompt(language, think), think, end_tokens(model))
        if engine is None:
            check_model(model)
        self.engine = engine or BuiltInEngine(model, cores)
        self.spec = spec
        self.think = think
        self.prompt_hash = prompt_hash(language, think)
        self.max_tokens = max_tokens
        self.temperature = temperature
        self._conversations: WeakKeyDictionary[Dialogue, _Conversation] = WeakKeyDictionary()

    async def reply(self, dialogue: Dialogue, seed: int) -> Reply:
        """See `Policy.reply`. Replies that are requested at the same time are sampled together.

        A dialogue can get several replies to choose from, one after another, each with a seed of its own.

        Raises:
            ValueError: another reply to the same dialogue is being sampled.
        """
        conversation = self._conversation(dialogue)
        if conversation.sampling:
            raise ValueError("a reply to this dialogue is being sampled already; request the next one after it")
        conversation.sampling = True
        try:
            return await self._sample(dialogue, conversation, seed * 1009 + len(dialogue.turns))
        finally:
            conversation.sampling = False

    async def update_weights(self) -> None:
        """Let the engine sample from the model's current weights. See `Engine.update_weights`."""
        for conversation in self._conversations.values():
            conversation.end()  # the engine computed it with the old weights
        await self.engine.update_weights(self.model)

    async def close(self) -> None:
        """Close connections. The policy can be used again."""
        await self.engine.close()

    def _conversation(self, dialogue: Dialogue) -> _Conversation:
        """The engine's conversation of a dialogue. It ends with the dialogue, or when the dialogue is dropped."""
        if dialogue not in self._conversations:
            conversation = _Conversation(self.engine)
            self._conversations[dialogue] = conversation
            dialogue.on_end(conversation.end)
            finalize(dialogue, conversation.end).atexit = False
        return self._conversations[dialogue]

    async def _sample(self, dialogue: Dialogue, conversation: _Conversation, seed: int) -> Reply:
        """Sample the next reply of a dialogue."""
        if conversation.number is None:
            conversation.number = self.engine.open()
        context, new = self._context(dialogue, conversation, conversation.number)
        sampling = Sampling(self.temperature, self.max_tokens, frozenset(self.chat.stops))
        chunk = [*new, *self.chat.lead]
        ids, logprobs = await self.engine.reply(conversation.number, chunk, seed, sampling)
        tokens = conversation.held = TokenRecord([*context, *chunk], ids, logprobs, len(self.chat.lead))
        conversation.sampled.append(tokens)
        return Reply.parse(self.chat.decode(ids), self.think, tokens)

    def _context(self, dialogue: Dialogue, conversation: _Conversation, number: int) -> tuple[list[int], list[int]]:
        """Ids of a dialogue up to the next reply without the lead: those that the engine holds, and the new ones."""
        last = dialogue.turns[-1].tokens if dialogue.turns else None
        if last is None or last is not conversation.held:
            # A new dialogue, or one whose last reply is not the one that the engine sampled last.
            self.engine.rewind(number, 0)
            return [], self._all_ids(dialogue, conversation)
        messages = dialogue.messages()
        context = last.context_ids
        new = self.chat.reply(messages[-2].content) if self.think else self.chat.closed(last.token_ids)
        if self.think or last.lead:
            # Later turns see the reply without thought and lead, so the engine goes back to before the lead.
            self.engine.rewind(number, len(context))
            read = 0
        else:
            read = len(last.token_ids) - 1
        new += self.chat.turn(messages[-1].content)
        return [*context, *new[:read]], new[read:]

    def _all_ids(self, dialogue: Dialogue, conversation: _Conversation) -> list[int]:
        """Ids of a dialogue up to the next reply without the lead. Replies that were not sampled here are text."""
        messages = dialogue.messages()
        ids = self.chat.opening(messages[0].content)
        for turn, reply, utterance in zip(dialogue.turns, messages[1::2], messages[2::2], strict=True):
            record = None if self.think else conversation.find(turn.tokens)
            ids += self.chat.reply(reply.content) if record is None else self.chat.closed(record.token_ids)
            ids += self.chat.turn(utterance.content)
        return ids
