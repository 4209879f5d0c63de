"""The answers under way: what becomes of tokens once they are drawn, up to an answer's end."""

from __future__ import annotations

from collections.abc import Callable

from mull.engine.reply import Reply
from mull.engine.request import Event, TokenLogprob
from mull.engine.scheduler import Scheduler
from mull.engine.sequence import Sequence
from mull.engine.thinking import CloseReason
from mull.text.templates import ChatTemplate


class Answers:
    """samples: of each request, those that go on. replies: what each of them has said.
    cached_tokens: of the prompts of all that have ended, those found in the cache."""

    def __init__(
        self,
        scheduler: Scheduler,
        template: ChatTemplate,
        *,
        forget_guesses: Callable[[Sequence], None],
    ) -> None:
        self.samples: dict[int, list[Sequence]] = {}
        self.replies: dict[Sequence, Reply] = {}
        self.cached_tokens = 0
        self._scheduler, self._template = scheduler, template
        self._forget_guesses = forget_guesses

    def cancel(self, request_id: int) -> list[Event]:
        """Drop all samples of a request; their "end" events."""
        events: list[Event] = []
        for seq in list(self.samples.get(request_id, [])):
            events += self.replies[seq].cancel()
            self.drop(seq)
        return events

    def useful_guesses(self, seq: Sequence) -> int:
        """How many guesses the sequence's next step could use at most."""
        reply = self.replies.get(seq)
        if reply is None or not seq.speculate or len(seq) != seq.computed + 1:
            return 0
        return reply.tokens_left - 1

    def take(
        self, seq: Sequence, drawn: list[tuple[int, TokenLogprob | None]], foreseen: list[int]
    ) -> tuple[list[Event], int]:
        """Append what was drawn, up to the first token that had not been foreseen: each was drawn
        after the foreseen ones before it. Also how many are more than the first."""
        events: list[Event] = []
        for i, (token, logprob) in enumerate(drawn):
            if i:
                self._scheduler.accepted(seq)
            length = len(seq) + 1
            events += self.take_one(seq, token, logprob)
            # Over as well when the answer has ended, or its thinking was closed.
            is_alone = len(seq) == length and seq.token_ids[-1] == token
            if foreseen[i : i + 1] != [token] or seq not in self.replies or not is_alone:
                break
            if seq.constraint is not None and not seq.constraint.is_free:
                break  # its grammar begins: what comes next was drawn without it
        if seq in self.replies:
            self._scheduler.blocks.trim(seq)
        return events, i

    def take_one(self, seq: Sequence, token: int, logprob: TokenLogprob | None) -> list[Event]:
        """Append a token that was drawn."""
        if self.replies[seq].ends_too_early(token):
            return self._close(seq, "ended")
        events = self._accept(seq, token, logprob)
        return events + self.steer(seq) if seq in self.replies else events

    def _accept(
        self, seq: Sequence, token: int, logprob: TokenLogprob | None, *, is_forced: bool = False
    ) -> list[Event]:
        reply = self.replies[seq]
        seq.append(token)
        events = reply.push(token, logprob, is_forced=is_forced)
        if reply.is_finished:
            self.drop(seq)
        return events

    def steer(self, seq: Sequence) -> list[Event]:
        """Close the sequence's thinking if it is time, with tokens fed as if it had said them."""
        reply = self.replies.get(seq)
        reason = reply.reason_to_close() if reply is not None else None
        return [] if reason is None else self._close(seq, reason)

    def _close(self, seq: Sequence, reason: CloseReason) -> list[Event]:
        reply = self.replies[seq]
        events: list[Event] = []
        reply.closing(reason)
        for token in self._template.thinking_close_ids(is_mid_line=reply.is_mid_line):
            if not reply.is_finished:
                events += self._accept(seq, token, None, is_forced=True)
        reply.closed()
        return events

    def drop(self, seq: Sequence) -> None:
        """A finished or cancelled sequence leaves nothing behind."""
        self.cached_tokens += seq.cached_tokens or 0
        self._scheduler.remove(seq)
        self._forget_guesses(seq)
        del self.replies[seq]
        siblings = self.samples[seq.request_id]
        siblings.remove(seq)
        if not siblings:
            del self.samples[seq.request_id]
