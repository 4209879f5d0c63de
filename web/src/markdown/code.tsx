// A piece of code: its language, a copy button, and colours once it has stopped growing.

import { useEffect, useState } from "preact/hooks";
import { t } from "../i18n";
import { CopyButton } from "../ui/copy-button";
import { coloured } from "./enhance";

const PIECE_LINES = 100;
const PIECE_CHARACTERS = 8_000;
const LONG_LINE = 5_000;

export function Code({ text, language, open }: { text: string; language: string; open: boolean }) {
  const [html, setHtml] = useState<string | null>(null);
  useEffect(() => {
    if (open) return;
    let wanted = true;
    coloured(text, language).then((result) => {
      if (wanted) setHtml(result);
    });
    return () => {
      wanted = false;
    };
  }, [text, language, open]);
  const wraps = text.length > LONG_LINE && text.split("\n").some((line) => line.length > LONG_LINE);
  return (
    <figure class="code">
      <figcaption>
        <span>{language || t("code.plain")}</span>
        <CopyButton text={text} />
      </figcaption>
      {html !== null && !open ? (
        <pre tabIndex={0} dir="ltr">
          <code dangerouslySetInnerHTML={{ __html: html }} />
        </pre>
      ) : (
        <pre tabIndex={0} dir="ltr" class={wraps ? "wraps" : undefined}>
          <code>
            {pieces(text).map((piece, index) => (
              <span key={index}>{piece}</span>
            ))}
          </code>
        </pre>
      )}
    </figure>
  );
}

/** Long code in pieces, so that a line more does not lay out the whole anew. */
function pieces(text: string): string[] {
  if (text.length < PIECE_CHARACTERS) return [text];
  const result: string[] = [];
  let start = 0;
  while (start < text.length) {
    let end = start;
    for (let line = 0; line < PIECE_LINES && end < text.length; line += 1) {
      const next = text.indexOf("\n", end);
      end = next < 0 ? text.length : next + 1;
    }
    end = Math.min(end, start + PIECE_CHARACTERS);
    result.push(text.slice(start, end));
    start = end;
  }
  return result;
}
