// A text as blocks on the page. Settled blocks are never touched again; the last one is written anew.

import { memo } from "preact/compat";
import { useLayoutEffect, useRef } from "preact/hooks";
import { type Block, BlockStream } from "./blocks";
import { Code } from "./code";
import { drawFormulas } from "./enhance";
import { sanitise } from "./sanitise";

/** How long the last drawing of a growing text took, in milliseconds: streams wait accordingly. */
export const drawing = { ms: 0 };

export function Markdown({ text, growing }: { text: string; growing?: boolean }) {
  const stream = useRef<BlockStream | null>(null);
  stream.current ??= new BlockStream();
  const started = performance.now();
  stream.current.update(text);
  const { settled, last } = stream.current;
  useLayoutEffect(() => {
    if (growing) drawing.ms = performance.now() - started;
  });
  return (
    <div class={growing ? "prose growing" : "prose"}>
      {settled.map((block, index) => (
        <OneBlock key={index} block={block} open={false} />
      ))}
      {last.map((block, index) => (
        <OneBlock key={settled.length + index} block={block} open={growing === true} />
      ))}
    </div>
  );
}

const OneBlock = memo(
  function OneBlock({ block, open }: { block: Block; open: boolean }) {
    if (block.kind === "html") return <Html html={block.html} />;
    if (block.kind === "code")
      return <Code text={block.text} language={block.language} open={open} />;
    return (
      <p class="plain" dir="auto">
        {block.text}
      </p>
    );
  },
  (before, after) => before.block === after.block && before.open === after.open,
);

function Html({ html }: { html: string }) {
  const ref = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const root = ref.current;
    if (!root) return;
    root.innerHTML = sanitise(html);
    drawFormulas(root);
  }, [html]);
  return <div class="block" ref={ref} />;
}
