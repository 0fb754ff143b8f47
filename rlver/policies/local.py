"""A local Hugging Face causal language model as a policy, with the exact ids and log-probabilities of its replies."""

from __future__ import annotations

from dataclasses import dataclass
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
    number: int
    turns: int = 0
    """Number of turns whose replies the engine has sampled."""
    open: bool = True

    def end(self) -> None:
        """End the conversation. The second call does nothing."""
        if self.open:
            self.open = False
            self.engine.end(self.number)


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
        """See `Policy.reply`. Replies that are requested at the same time are sampled together."""
        conversation = self._conversation(dialogue)
        context, new = self._context(dialogue, conversation)
        sampling = Sampling(self.temperature, self.max_tokens, frozenset(self.chat.stops))
        chunk = [*new, *self.chat.lead]
        ids, logprobs = await self.engine.reply(conversation.number, chunk, seed * 1009 + len(dialogue.turns), sampling)
        conversation.turns = len(dialogue.turns) + 1
        tokens = TokenRecord([*context, *chunk], ids, logprobs, len(self.chat.lead))
        return Reply.parse(self.chat.decode(ids), self.think, tokens)

    async def update_weights(self) -> None:
        """Let the engine sample from the model's current weights. See `Engine.update_weights`."""
        await self.engine.update_weights(self.model)

    async def close(self) -> None:
        """Close connections. The policy can be used again."""
        await self.engine.close()

    def _conversation(self, dialogue: Dialogue) -> _Conversation:
        """The engine's conversation of a dialogue. It ends with the dialogue, or when the dialogue is dropped."""
        if dialogue not in self._conversations:
            conversation = _Conversation(self.engine, self.engine.open())
            self._conversations[dialogue] = conversation
            dialogue.on_end(conversation.end)
            finalize(dialogue, conversation.end).atexit = False
        return self._conversations[dialogue]

    def _context(self, dialogue: Dialogue, conversation: _Conversation) -> tuple[list[int], list[int]]:
        """Ids of a dialogue up to the next reply without the lead: those that the engine holds, and the new ones."""
        messages = dialogue.messages()
        last = dialogue.turns[-1].tokens if dialogue.turns else None
        if last is None or conversation.turns != len(dialogue.turns):
            # A new dialogue, or one in which something else has replied before.
            self.engine.rewind(conversation.number, 0)
            ids = self.chat.opening(messages[0].content)
            for reply, utterance in zip(messages[1::2], messages[2::2], strict=True):
                ids += [*self.chat.reply(reply.content), *self.chat.turn(utterance.content)]
            return [], ids
        context = last.context_ids
        new = self.chat.reply(messages[-2].content) if self.think else self.chat.closed(last.token_ids)
        if self.think or last.lead:
            # Later turns see the reply without thought and lead, so the engine goes back to before the lead.
            self.engine.rewind(conversation.number, len(context))
            read = 0
        else:
            read = len(last.token_ids) - 1
        new += self.chat.turn(messages[-1].content)
        return [*context, *new[:read]], new[read:]
