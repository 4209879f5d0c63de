import { expect, test } from "vitest";
import { type Block, BlockStream } from "./blocks";

function blocks(text: string): Block[] {
  const stream = new BlockStream();
  stream.update(text);
  return [...stream.settled, ...stream.last];
}

function html(text: string): string {
  return blocks(text)
    .map((block) => (block.kind === "html" ? block.html : `[${block.kind}:${block.text}]`))
    .join("");
}

const ANSWER = `# Title

Some *words* with \\(x^2\\), $a_b$ and a price of $5 or $6.

1. one
2. two

   still two
10. three

| a | b |
|--:|:-:|
| 1 | 2 |

\`\`\`python
print("한국어")

x = 1
\`\`\`

$$
\\int_0^1 x\\,dx
$$

> quoted
lazily

\\[ e = mc^2 \\]

the end`;

test("a stream shows what the whole text shows, however it is cut", () => {
  for (const step of [1, 3, 17]) {
    const stream = new BlockStream();
    for (let end = step; end < ANSWER.length + step; end += step)
      stream.update(ANSWER.slice(0, end));
    expect([...stream.settled, ...stream.last]).toEqual(blocks(ANSWER));
  }
});

test("what is settled stays the same object", () => {
  const stream = new BlockStream();
  stream.update(ANSWER.slice(0, 200));
  const before = [...stream.settled];
  expect(before.length).toBeGreaterThan(1);
  stream.update(ANSWER);
  before.forEach((block, index) => {
    expect(stream.settled[index]).toBe(block);
  });
});

test("an edited text starts anew", () => {
  const stream = new BlockStream();
  stream.update("one\n\ntwo\n\nthree");
  stream.update("other");
  expect([...stream.settled, ...stream.last]).toEqual(blocks("other"));
});

test("formulas are told from money", () => {
  expect(html("It costs $5 or $6.")).not.toContain("math");
  expect(html("Here $x+1$ is")).toContain('<span class="math">x+1</span>');
  expect(html("\\[ a < b \\]")).toContain('data-display="true">a &lt; b<');
  expect(html("broken \\( never ends")).not.toContain("math");
});

test("HTML stays text, scripts are no links, images are links", () => {
  expect(html('<script>alert(1)</script><img src=x onerror="alert(1)">')).not.toMatch(
    /<(script|img)/,
  );
  expect(html("[x](javascript:alert(1)) [y](data:text/html,x)")).not.toContain("href");
  expect(html("![cat](https://evil.example/cat.png)")).toContain(
    '<a href="https://evil.example/cat.png"',
  );
});

test("a line without end is shown in pieces, and nothing of it is lost", () => {
  const line = "x".repeat(1_000_000);
  const pieces = blocks(`before\n\n${line}\n\nafter`);
  expect(pieces.length).toBeGreaterThan(100);
  expect(pieces.map((block) => (block.kind === "plain" ? block.text : "")).join("")).toBe(line);
  const stream = new BlockStream();
  for (let end = 0; end <= 50_000; end += 3777) stream.update(line.slice(0, end));
  expect(stream.settled.length).toBeGreaterThan(2);
});

test("delimiters without end come to an end", () => {
  for (const piece of ["[", "*a ", "`", "![", "\\(", "$a", "> ", "- ", "<", "**_", "| "]) {
    expect(blocks(piece.repeat(9_000 / piece.length)).length, piece).toBeGreaterThan(0);
  }
}, 30_000);
