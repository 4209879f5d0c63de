// Markdown as models write it, to HTML. HTML inside it stays text; sanitise.ts is the second gate.

import createMarkdownIt, { type MarkdownIt, type Token } from "markdown-it";
import { math } from "./math";

export const md: MarkdownIt = createMarkdownIt({ html: false, linkify: true, breaks: true });

md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
md.use(math);

// Between two numbers a star is a multiplication, however many of them a line has.
md.inline.ruler.before("emphasis", "times", (state, silent) => {
  const { src, pos } = state;
  if (src[pos] !== "*" || !/[\d)]/.test(src[pos - 1] ?? "") || !/[\d(]/.test(src[pos + 1] ?? ""))
    return false;
  if (!silent) state.pending += "*";
  state.pos += 1;
  return true;
});

// Text of any direction stays within its own block and does not turn its neighbours around.
const DIRECTED = /^(paragraph|heading|list_item|blockquote|th|td)_open$/;
md.core.ruler.push("direction", (state) => {
  for (const token of state.tokens) if (DIRECTED.test(token.type)) token.attrSet("dir", "auto");
});

md.renderer.rules.link_open = (tokens, index, options, _env, self) => {
  const token = tokens[index]!;
  token.attrSet("target", "_blank");
  token.attrSet("rel", "noopener noreferrer nofollow");
  return self.renderToken(tokens, index, options);
};

// An image would ask another server for itself and so tell it who reads: it is a link, to be opened or not.
md.renderer.rules.image = (tokens, index) => {
  const token = tokens[index]!;
  const { escapeHtml } = md.utils;
  const address = String(token.attrGet("src") ?? "");
  const words = token.content || address;
  if (!/^https?:/i.test(address)) return escapeHtml(words);
  return `<a href="${escapeHtml(address)}" target="_blank" rel="noopener noreferrer nofollow">${escapeHtml(words)}</a>`;
};

// Columns are aligned by class: the content policy allows no style attributes.
for (const rule of ["th_open", "td_open"]) {
  md.renderer.rules[rule] = (tokens, index, options, _env, self) => {
    const token = tokens[index]!;
    const side = /text-align:(left|center|right)/.exec(String(token.attrGet("style") ?? ""))?.[1];
    token.attrs = (token.attrs ?? []).filter(([name]) => name !== "style");
    if (side) token.attrJoin("class", `align-${side}`);
    return self.renderToken(tokens, index, options);
  };
}
md.renderer.rules.table_open = () => '<div class="table" tabindex="0"><table>\n';
md.renderer.rules.table_close = () => "</table></div>\n";

md.renderer.rules.fence = (tokens, index) =>
  codeHtml(tokens[index]!.content, languageOf(tokens[index]!));
md.renderer.rules.code_block = (tokens, index) => codeHtml(tokens[index]!.content, "");

function codeHtml(text: string, language: string): string {
  const { escapeHtml } = md.utils;
  return `<pre data-language="${escapeHtml(language)}"><code>${escapeHtml(text)}</code></pre>\n`;
}

export function languageOf(token: Token): string {
  return (/^[\w+#.-]{1,20}/.exec(token.info.trim())?.[0] ?? "").toLowerCase();
}
