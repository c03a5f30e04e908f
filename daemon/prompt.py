"""The text shown to the model. Pure.

Order keeps the fixed part first, so that the model server's prompt cache is reused from one question to the next:
persona, the caller's own system messages, earlier turns byte for byte as they were, and only then what changes. What a
colleague said is quoted as data inside the user's turn, never in the system prompt.
"""

from __future__ import annotations

from msgspec import Struct

from protocol.messages import Context, Turn

CHARS_PER_TOKEN = 3.0  # a cautious start; corrected by the model server's own count
TURN_OVERHEAD_TOKENS = 8  # what a chat template puts around a turn
SMALLEST_RATIO, LARGEST_RATIO = 1.0, 6.0


def user_turn(context: Context, content: str) -> str:
    """The user's turn: hints, the colleague's answer as a quotation, then the question."""
    parts = []
    if context.memory_hints:
        parts.append("Context: " + "; ".join(context.memory_hints))
    previous = (context.previous_response or "").strip()
    if previous:
        author = context.author or "a colleague"
        if previous == content.strip():
            # The originals' pipelines send the previous answer as the question too; once is enough.
            return "\n\n".join([*parts, f"{author} answered as follows; work on from it.", _quoted(previous)])
        parts.append(f"{author} answered before you:\n{_quoted(previous)}")
    parts.append(content)
    return "\n\n".join(part for part in parts if part)


def beside(persona: str, turns: list[Turn]) -> tuple[str, list[Turn]]:
    """The system prompt, and the turns without those that went into it.

    A caller's own system messages stand behind the persona, in their order. Further down many chat templates would drop them or
    refuse them; and there they would be among what is left out when a conversation grows too long.
    """
    said = [turn.content for turn in turns if turn.role == "system" and turn.content.strip()]
    return "\n\n".join(part for part in (persona, *said) if part), [turn for turn in turns if turn.role != "system"]


def _quoted(text: str) -> str:
    return "\n".join("> " + line for line in text.splitlines())


def fitting(turns: list[Turn], fixed: str, budget_tokens: float, chars_per_token: float) -> list[Turn]:
    """The newest turns that fit beside the fixed text.

    The oldest half goes at a time: sliding by one turn would make the model server read everything anew each time.
    """
    kept = turns
    while kept and tokens_of(fixed, kept, chars_per_token) > budget_tokens:
        kept = kept[(len(kept) + 1) // 2 :]
        # A conversation begins with what the user said.
        while kept and kept[0].role == "assistant":
            kept = kept[1:]
    return kept


def tokens_of(fixed: str, turns: list[Turn], chars_per_token: float) -> float:
    """An estimate from above of the prompt's tokens."""
    characters = len(fixed) + sum(len(turn.content) for turn in turns)
    return characters / chars_per_token + TURN_OVERHEAD_TOKENS * (len(turns) + 2)


class TokenRatio(Struct):
    """Characters per token of this model, learned from its own counts. One writer: the specialist."""

    value: float = CHARS_PER_TOKEN

    def learn(self, characters: int, tokens: int) -> None:
        """Moves half-way towards what was counted; short prompts are mostly template and teach nothing."""
        if tokens < 64:
            return
        seen = min(LARGEST_RATIO, max(SMALLEST_RATIO, characters / tokens))
        self.value = (self.value + seen) / 2
