// What is drawn after the words stand: formulas and the colours of code. Both libraries are fetched
// when the first formula or the first piece of code appears.

const drawn = new Map<string, Node>(); // formulas seen before are copied, not drawn again
const MOST_KEPT = 500;

type Katex = typeof import("katex")["default"];
let katex: Katex | null = null;
let katexLoading: Promise<void> | null = null;

/** Draws the formulas within `root`; one that KaTeX cannot read stays as it was written. */
export function drawFormulas(root: HTMLElement): void {
  const places = root.querySelectorAll<HTMLElement>(".math:not([data-drawn])");
  if (places.length === 0) return;
  if (katex) {
    for (const place of places) draw(place, katex);
    return;
  }
  katexLoading ??= Promise.all([import("katex"), import("katex/dist/katex.min.css")]).then(
    ([module]) => {
      katex = module.default;
    },
    () => {
      katexLoading = null; // offline: the source is readable, and the next formula tries again
    },
  );
  katexLoading.then(() => {
    if (katex && root.isConnected) drawFormulas(root);
  });
}

function draw(place: HTMLElement, katex: Katex): void {
  const source = place.textContent ?? "";
  const displayMode = place.dataset.display === "true";
  const key = `${displayMode} ${source}`;
  place.dataset.drawn = "true";
  let node = drawn.get(key);
  if (!node) {
    const into = document.createElement("span");
    try {
      // maxSize and maxExpand bound what a hostile formula can do; trust is off by default.
      katex.render(source, into, {
        displayMode,
        throwOnError: true,
        maxSize: 20,
        maxExpand: 200,
        strict: "ignore",
      });
    } catch {
      into.textContent = displayMode ? `\\[${source}\\]` : `\\(${source}\\)`;
      into.className = "math-broken";
    }
    node = into;
    if (drawn.size >= MOST_KEPT) drawn.clear();
    drawn.set(key, node);
  }
  place.replaceChildren(node.cloneNode(true));
}

const LONGEST_COLOURED = 60_000;
let colouring: Promise<typeof import("./highlight")> | null = null;

/** Colours of code as HTML (made of spans by highlight.js out of escaped text), or null where it has none. */
export async function coloured(text: string, language: string): Promise<string | null> {
  if (!language || text.length > LONGEST_COLOURED) return null;
  colouring ??= import("./highlight");
  try {
    return (await colouring).colour(text, language);
  } catch {
    colouring = null;
    return null;
  }
}
