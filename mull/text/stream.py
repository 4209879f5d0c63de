"""From sampled token ids to what a reader sees: thinking, answer, tool calls, piece by piece.

Tags are recognised by token id wherever the vocabulary has them, and only otherwise by their text,
which may be spread over tokens and is held back until it is certain. Newlines next to a thinking
tag belong to the tag. Nothing is lost: a tool call that cannot be read comes back as answer text.
"""

import codecs
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from .templates import ChatTemplate
from .tokenizer import Tokenizer
from .tool_calls import BareObjects, Calls, tool_syntax

PieceKind = Literal["thinking", "answer", "tool_call"]


@dataclass(frozen=True)
class Piece:
    """A stretch of output. For a tool call `text` is as written, `arguments` is JSON text."""

    kind: PieceKind
    text: str
    name: str | None = None
    arguments: str | None = None


class StreamDecoder:
    """Token ids in, text out as soon as its characters are whole.

    Bytes that can never become a character turn into U+FFFD; control tokens have no text.
    """

    def __init__(self, tokenizer: Tokenizer, *, goes_on: bool = False) -> None:
        """goes_on: the ids come after a text, so that a space before them is its own."""
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_leading_space and not goes_on

    def push(self, token: int) -> str:
        if self._tokenizer.is_control(token):
            return ""
        return self._decode(self._tokenizer.token_bytes(token))

    def push_all(self, tokens: list[int]) -> str:
        """As `push` of each, joined; none of them a control token."""
        return self._decode(b"".join(map(self._tokenizer.token_bytes, tokens)))

    def _decode(self, raw: bytes) -> str:
        if self._strip and raw:
            raw, self._strip = raw.removeprefix(b" "), False
        return self._utf8.decode(raw)

    def finish(self) -> str:
        """What is left of a character that never got whole."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class StreamParser:
    """Splits one answer's token ids into pieces; any chunking gives the same concatenation.

    `template` tells the tags and how tool calls are written; `tools_offered` allows calls that
    are told apart from text by their look alone. `is_raw`: nothing is a tag, all is answer.
    `goes_on`: as StreamDecoder's.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        starts_in_thinking: bool = False,
        template: ChatTemplate | None = None,
        tools_offered: bool = False,
        is_raw: bool = False,
        goes_on: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, goes_on=goes_on)
        self._open = template.think_open if template else "<think>"
        self._close = template.think_close if template else "</think>"
        syntax = tool_syntax(template.tool_format if template and not is_raw else None)
        self._syntax = syntax
        self._tools_offered = tools_offered
        thinking_tags = () if is_raw else (self._open, self._close)
        tags = {*thinking_tags, *(syntax.tags if syntax else ())}
        ids = tokenizer.special_ids
        self._tag_of_id = {ids[t]: t for t in tags if t in ids}
        self._text_tags = [t for t in tags if t not in ids]
        self._bare = BareObjects() if syntax and syntax.bare_objects and tools_offered else None
        self._state: PieceKind = "thinking" if starts_in_thinking else "answer"
        self._buffer = ""
        self._token_starts: list[int] = []  # where tokens held back in the buffer begin
        self._trim = starts_in_thinking  # newlines that follow a tag are dropped
        self._newlines = ""  # newlines of the thinking that may belong to its closing tag
        self._said = False  # whether the answer has begun
        self._call = ""  # a tool call in the making, as written
        self.thinking_tokens = 0

    @property
    def is_thinking(self) -> bool:
        return self._state == "thinking"

    def push(self, token: int) -> list[Piece]:
        """What `token` adds. End-of-turn and other control tokens add nothing."""
        out: list[Piece] = []
        tag = self._tag_of_id.get(token)
        if tag is not None and self._means_tag(tag):
            self._feed(self._decoder.finish(), out)
            if tag == self._open and not self._said and not self._buffer.strip():
                self._skip(len(self._buffer))  # white space before the tag belongs to it
            self._drain(out, final=True)
            self._on_tag(tag, out)
        elif tag is not None or not self._tokenizer.is_control(token):
            if self.is_thinking:
                self.thinking_tokens += 1
                self._token_starts.append(len(self._buffer))
            text = tag if tag is not None else self._decoder.push(token)
            self._feed(text, out)
        return _joined(out)

    def push_all(self, tokens: list[int]) -> list[Piece]:
        """As `push` of each, joined; tokens between tags go through in one piece."""
        if self._may_read_tags():
            return _joined([piece for token in tokens for piece in self.push(token)])
        out: list[Piece] = []
        for is_tag, some in groupby(tokens, self._tag_of_id.__contains__):
            run = list(some)
            if is_tag:
                for token in run:
                    out += self.push(token)
                continue
            said = [token for token in run if not self._tokenizer.is_control(token)]
            if self.is_thinking:
                self.thinking_tokens += len(said)
            self._feed(self._decoder.push_all(said), out)
        return _joined(out)

    def finish(self) -> list[Piece]:
        """What was held back; call once, when the answer has ended."""
        out: list[Piece] = []
        self._feed(self._decoder.finish(), out)
        self._drain(out, final=True)
        if self._state == "tool_call":
            self._end_call(out)
        self._end_bare(out)
        if self._newlines:
            out.append(Piece("thinking", self._newlines))
            self._newlines = ""
        return _joined(out)

    def _means_tag(self, tag: str) -> bool:
        """Whether a tag acts here; a tool tag inside the thinking is only talked about."""
        if tag in (self._open, self._close):
            return self._state != "tool_call"
        if self._syntax is None or self._state == "thinking":
            return False
        return self._state == "tool_call" or tag in self._syntax.opening

    def _may_read_tags(self) -> bool:
        """Whether a tag may yet be found in text. Those of tools are looked for only where tools
        are offered, and within a call, which then begins with a token of its own."""
        tool_tags = self._syntax.tags if self._syntax else ()
        may_call = self._tools_offered or any(t in tool_tags for t in self._tag_of_id.values())
        return any(may_call or t not in tool_tags for t in self._text_tags)

    def _active_text_tags(self) -> list[str]:
        """Tags to look for in text, in this state; only what the vocabulary lacks."""
        if self._state == "thinking":
            return [t for t in self._text_tags if t == self._close]
        if self._state == "tool_call":
            return [t for t in self._text_tags if self._syntax and t in self._syntax.tags]
        tool_tags = self._syntax.opening if self._syntax and self._tools_offered else ()
        begins = self._open if not self._said else None
        return [t for t in self._text_tags if t == begins or t in tool_tags]

    def _feed(self, text: str, out: list[Piece]) -> None:
        self._buffer += text
        self._drain(out, final=False)

    def _drain(self, out: list[Piece], *, final: bool) -> None:
        while self._buffer:
            tags = self._active_text_tags()
            found = min(
                ((self._buffer.find(t), t) for t in tags if t in self._buffer), default=None
            )
            if found is None:
                break
            start, tag = found
            if tag == self._open and self._buffer[:start].strip():
                # an opening tag only counts where the answer begins; later it is talked about
                self._take(start + 1, out)
                continue
            if tag != self._open:
                self._take(start, out)
            if self.is_thinking:  # tokens that only spell the tag are no thinking
                self.thinking_tokens -= sum(s < len(tag) for s in self._token_starts)
            self._skip(self._buffer.index(tag) + len(tag))
            self._on_tag(tag, out)
        held = 0 if final else _held_back(self._buffer, self._active_text_tags())
        certain = self._buffer[: len(self._buffer) - held]
        if final or self._said or self._state != "answer" or certain.strip():
            self._take(len(certain), out)  # white space before an answer may belong to a tag

    def _take(self, length: int, out: list[Piece]) -> None:
        text = self._buffer[:length]
        self._skip(length)
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        if not text:
            return
        if self._state == "thinking":
            text = self._newlines + text
            kept = text.rstrip("\n")
            self._newlines = text[len(kept) :]
            if kept:
                out.append(Piece("thinking", kept))
        elif self._state == "tool_call":
            self._call += text
        else:
            self._answer_text(text, out)

    def _skip(self, length: int) -> None:
        self._buffer = self._buffer[length:]
        self._token_starts = [s - length for s in self._token_starts if s >= length]

    def _answer_text(self, text: str, out: list[Piece]) -> None:
        self._said = self._said or bool(text.strip())
        if self._bare is None:
            out.append(Piece("answer", text))
        else:
            for written, calls in self._bare.push(text):
                self._called(written, calls, out)

    def _called(self, written: str, calls: Calls, out: list[Piece]) -> None:
        """Hands out calls; what was written stands with the first one."""
        if not calls and written:
            out.append(Piece("answer", written))
        for index, (name, arguments) in enumerate(calls):
            out.append(Piece("tool_call", "" if index else written, name, arguments))

    def _end_bare(self, out: list[Piece]) -> None:
        if self._bare is not None:
            for written, calls in self._bare.finish():
                self._called(written, calls, out)

    def _on_tag(self, tag: str, out: list[Piece]) -> None:
        if tag == self._open or tag == self._close:
            self._newlines = ""
            self._trim = True
            self._state = "thinking" if tag == self._open else "answer"
            return
        assert self._syntax is not None
        if self._state == "answer":
            self._end_bare(out)
            self._state, self._said, self._trim = "tool_call", True, False
        if tag in self._syntax.closing:
            self._end_call(out)
        elif tag in self._syntax.ending:
            self._call += tag
            self._end_call(out)
            if self._syntax.closing:
                self._state = "tool_call"
        else:
            self._call += tag

    def _end_call(self, out: list[Piece]) -> None:
        """Reads the call as written; one that cannot be read is text of the answer."""
        written, self._call = self._call, ""
        if written.strip():
            self._called(written, self._syntax.read(written) if self._syntax else [], out)
        self._state, self._trim = "answer", True


def _held_back(text: str, tags: list[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a tag."""
    longest = max((len(t) - 1 for t in tags), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(t.startswith(text[-length:]) for t in tags):
            return length
    return 0


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece; calls stay apart."""
    out: list[Piece] = []
    for piece in pieces:
        if out and piece.kind == out[-1].kind != "tool_call":
            out[-1] = Piece(piece.kind, out[-1].text + piece.text)
        else:
            out.append(piece)
    return out


_CLOSERS = "\"'”’»」』)]}*`_ "
_ENDS = ".!?。！？．…｡؟।"


def sentence_end(text: str) -> bool:
    """Whether `text` ends where a sentence does: a good place to stop a thinking.

    A newline, or a final mark (in any script we know of), also behind closing quotes; the point
    of a number ("3.") does not count before something follows it.
    """
    if text.endswith("\n"):
        return True
    bare = text.rstrip(_CLOSERS)
    if not bare or bare[-1] not in _ENDS:
        return False
    is_number = bare[-1] == "." and bare[-2:-1].isdigit()
    return not is_number or bare != text
