// Formulas in Markdown: \( \), \[ \], $ $ and $$ $$. They become elements that carry their source;
// enhance.ts draws them once KaTeX is there, and until then (or if they are broken) one reads the source.

import type { MarkdownIt, StateBlock, StateInline } from "markdown-it";

const LONGEST = 4000;

const INLINE = [
  { open: "\\(", close: "\\)", display: false },
  { open: "\\[", close: "\\]", display: true },
  { open: "$$", close: "$$", display: true },
  { open: "$", close: "$", display: false },
];
const BLOCK = INLINE.filter((form) => form.display);

export function math(md: MarkdownIt): void {
  md.inline.ruler.before("escape", "math", inlineRule);
  md.block.ruler.before("fence", "math_block", blockRule, {
    alt: ["paragraph", "reference", "blockquote", "list"],
  });
  const render = (display: boolean) => (tokens: { content: string }[], index: number) => {
    const source = md.utils.escapeHtml(tokens[index]?.content ?? "");
    return display
      ? `<div class="math" data-display="true">${source}</div>`
      : `<span class="math">${source}</span>`;
  };
  md.renderer.rules.math_inline = render(false);
  md.renderer.rules.math_block = render(true);
  md.renderer.rules.math_display = (tokens, index) =>
    `<span class="math" data-display="true">${md.utils.escapeHtml(tokens[index]?.content ?? "")}</span>`;
}

function inlineRule(state: StateInline, silent: boolean): boolean {
  const { src, pos, posMax } = state;
  const first = src.charCodeAt(pos);
  if (first !== 0x24 && first !== 0x5c) return false;
  const form = INLINE.find(({ open }) => src.startsWith(open, pos));
  if (!form) return false;
  const start = pos + form.open.length;
  const limit = Math.min(posMax, start + LONGEST);
  const unclosed = unclosedIn(state);
  if (unclosed[form.open] !== undefined && start >= unclosed[form.open]!) return false;
  const end = closing(src, form, start, limit);
  if (end < 0) {
    if (src.indexOf(form.close, start) < 0) unclosed[form.open] = start;
    return false;
  }
  const content = src.slice(start, end).trim();
  if (content === "") return false;
  if (!silent) {
    const token = state.push(form.display ? "math_display" : "math_inline", "", 0);
    token.content = content;
  }
  state.pos = end + form.close.length;
  return true;
}

// Where no closing follows any more, so that a line of nothing but openings is searched once.
const searched = new WeakMap<StateInline, Record<string, number>>();

function unclosedIn(state: StateInline): Record<string, number> {
  let known = searched.get(state);
  if (!known) {
    known = {};
    searched.set(state, known);
  }
  return known;
}

/** Where the formula that starts at `start` ends; -1 where it is none ("$5 and $6" is money). */
function closing(src: string, form: (typeof INLINE)[number], start: number, limit: number): number {
  if (form.open !== "$") {
    const end = src.indexOf(form.close, start);
    return end < limit ? end : -1;
  }
  if (/\s/.test(src[start] ?? " ")) return -1;
  for (let at = start; at < limit; at += 1) {
    const char = src[at];
    if (char === "\\") at += 1;
    else if (char === "$") {
      const isClosing = !/\s/.test(src[at - 1] ?? " ") && !/[0-9]/.test(src[at + 1] ?? "");
      return isClosing && at > start ? at : -1;
    }
  }
  return -1;
}

function blockRule(
  state: StateBlock,
  startLine: number,
  endLine: number,
  silent: boolean,
): boolean {
  const at = (line: number) =>
    state.src.slice(state.bMarks[line]! + state.tShift[line]!, state.eMarks[line]!).trimEnd();
  const first = at(startLine);
  const form = BLOCK.find(({ open }) => first.startsWith(open));
  if (!form) return false;
  const lines: string[] = [];
  let size = 0;
  for (let line = startLine; line < endLine; line += 1) {
    let text = line === startLine ? first.slice(form.open.length) : at(line);
    if (line > startLine && (text === "" || state.sCount[line]! < state.blkIndent)) return false;
    const isLast =
      text.endsWith(form.close) && (line > startLine || text.length >= form.close.length);
    if (isLast) text = text.slice(0, -form.close.length);
    if (text.includes(form.close)) return false; // words follow it: the inline rule's
    size += text.length;
    if (size > LONGEST) return false;
    lines.push(text);
    if (!isLast) continue;
    const content = lines.join("\n").trim();
    if (content === "") return false;
    if (silent) return true;
    const token = state.push("math_block", "", 0);
    token.block = true;
    token.content = content;
    token.map = [startLine, line + 1];
    state.line = line + 1;
    return true;
  }
  return false;
}
