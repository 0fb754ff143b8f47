"""Write a simulated user of your own: any object with `open` and `react`. Then measure policies with it."""

import rlver


class ImpatientCustomer:
    """A customer who wants a refund. Short, concrete replies please; long or evasive ones do not."""

    identity = "impatient-customer"

    async def open(self, dialogue: rlver.Dialogue, seed: int) -> rlver.Opening:
        """The first utterance."""
        return rlver.Opening("My order arrived broken. I want my money back.")

    async def react(self, dialogue: rlver.Dialogue, seed: int) -> rlver.Reaction:
        """The change of emotion after the last reply, and the next utterance."""
        reply = dialogue.turns[-1].reply
        change = (10 if "refund" in reply.lower() else -5) - (5 if len(reply.split()) > 30 else 0)
        utterance = "Good, thank you." if change > 0 else "That does not help me. What about my refund?"
        return rlver.Reaction(change=change, utterance=utterance)


def helpful(messages: list[dict[str, str]]) -> str:
    """Offers what the customer wants."""
    return "I am sorry about that. I have started your refund, and you will have it tomorrow."


def evasive(messages: list[dict[str, str]]) -> str:
    """Says nothing in many words."""
    return "We value your feedback and strive for excellence. " * 5


for policy in (helpful, evasive):
    print(rlver.evaluate(policy, user=ImpatientCustomer(), n=10))
