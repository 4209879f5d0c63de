// A growing Markdown text as a list of top-level blocks, of which only the last can still change. So a
// stream of any length costs, per frame, the parsing of its last block.

import type { Env, Token } from "markdown-it";
import { languageOf, md } from "./parser";

export type Block =
  | { kind: "html"; html: string }
  | { kind: "code"; text: string; language: string }
  | { kind: "plain"; text: string };

/** Beyond that a line, or a block that never ends, is shown as it is, in pieces: it is no prose. */
const LONGEST_LINE = 10_000;
const LONGEST_BLOCK = 60_000;
const PLAIN_PIECE = 8_000;

export class BlockStream {
  /** Blocks that will not change any more: a list that only grows, whose members stay the same. */
  readonly settled: Block[] = [];
  last: Block[] = [];
  private text = "";
  private offset = 0;
  private env: Env = {};

  /** Takes the whole text as it is now. A text that does not begin like the one before starts anew. */
  update(text: string): void {
    const whole = text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
    if (whole === this.text) return;
    if (!whole.startsWith(this.text)) this.reset();
    this.text = whole;
    this.settleLongLines();
    let groups = this.parse(this.offset);
    while (groups.length > 0) {
      const final = groups.at(-1)!;
      // A block is known to be another one once its first line is whole ("2" may become "2. next").
      const isDistinct = whole.indexOf("\n", final.start) >= 0;
      const settles = isDistinct ? groups.length - 1 : groups.length - 2;
      for (const group of groups.slice(0, Math.max(0, settles)))
        this.settled.push(blockOf(group, this.env));
      if (settles > 0) {
        groups = groups.slice(settles);
        this.offset = groups[0]!.start;
      }
      const isFence = groups[0]!.tokens[0]!.type === "fence";
      if (whole.length - this.offset <= LONGEST_BLOCK || isFence || groups.length > 1) break;
      this.settlePlain(this.cutBefore(this.offset + LONGEST_BLOCK));
      groups = this.parse(this.offset);
    }
    this.last = groups.map((group) => blockOf(group, this.env));
  }

  private reset(): void {
    this.settled.length = 0;
    this.last = [];
    this.text = "";
    this.offset = 0;
    this.env = {};
  }

  private settleLongLines(): void {
    let line = this.offset;
    while (line < this.text.length) {
      const found = this.text.indexOf("\n", line);
      const end = found < 0 ? this.text.length : found;
      if (end - line >= LONGEST_LINE) {
        const before = this.text.slice(this.offset, line);
        for (const group of groupsOf(before, this.env)) this.settled.push(blockOf(group, this.env));
        this.offset = line;
        this.settlePlain(end);
      }
      line = end + 1;
    }
  }

  /** What lies before `end` is shown as it is. A line that still grows is cut up as it comes. */
  private settlePlain(end: number): void {
    while (this.offset < end) {
      const cut =
        end - this.offset <= PLAIN_PIECE ? end : this.cutBefore(this.offset + PLAIN_PIECE);
      this.settled.push({ kind: "plain", text: this.text.slice(this.offset, cut) });
      this.offset = cut;
    }
  }

  /** The end of a line or word shortly before `at`, or `at` itself (not within a surrogate pair). */
  private cutBefore(at: number): number {
    const near = this.text.slice(at - 400, at);
    const space = Math.max(near.lastIndexOf("\n"), near.lastIndexOf(" "));
    if (space >= 0) return at - 400 + space + 1;
    const code = this.text.charCodeAt(at - 1);
    return code >= 0xd800 && code < 0xdc00 ? at - 1 : at;
  }

  private parse(offset: number): Group[] {
    return groupsOf(this.text.slice(offset), this.env).map((group) => ({
      ...group,
      start: group.start + offset,
    }));
  }
}

interface Group {
  tokens: Token[];
  start: number;
}

/** The top-level blocks of a text, and at which character each begins. */
function groupsOf(text: string, env: Env): Group[] {
  const tokens = md.parse(text, env);
  const groups: Group[] = [];
  let line = 0;
  let start = 0;
  let first = 0;
  tokens.forEach((token, index) => {
    if (token.level !== 0) return;
    if (token.nesting >= 0) {
      first = index;
      const wanted = token.map?.[0] ?? line;
      for (; line < wanted; line += 1) start = text.indexOf("\n", start) + 1;
    }
    if (token.nesting <= 0) groups.push({ tokens: tokens.slice(first, index + 1), start });
  });
  return groups;
}

function blockOf(group: Group, env: Env): Block {
  const [token] = group.tokens;
  if (token?.type === "fence") {
    return { kind: "code", text: token.content.replace(/\n$/, ""), language: languageOf(token) };
  }
  return { kind: "html", html: md.renderer.render(group.tokens, md.options, env) };
}
