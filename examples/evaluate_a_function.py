"""Measure any function with simulated users. It needs no network and no key, and takes a few seconds."""

import rlver


def reply(messages: list[dict[str, str]]) -> str:
    """A reply to the last message. Call your own model here."""
    return f"That sounds hard. Tell me more. You said: {messages[-1]['content'].split('.')[0]}."


evaluation = rlver.evaluate(reply, user="vanilla", n=20)
print(f"score {evaluation.score:.1f}, 95 % interval {evaluation.ci95[0]:.1f} to {evaluation.ci95[1]:.1f}")

# A row per dialogue; `by="turn"` gives a row per reply, with the reasons for each change of emotion.
table = evaluation.to_pandas()
print(table.groupby("intention")["score"].mean().round(1).to_string())
