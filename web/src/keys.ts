// Keyboard shortcuts: here is what they are, for the list behind "?"; what they do is registered by
// whoever does it, while it is on the screen.

import { useLayoutEffect, useRef } from "preact/hooks";

/** In the order of the list. "mod" is Ctrl, or Command on a Mac; other names as in KeyboardEvent.key. */
export const SHORTCUTS = {
  write: "/",
  attach: "mod+u",
  think: "alt+t",
  answer_now: "alt+a",
  stop: "Escape",
  regenerate: "alt+r",
  copy: "alt+c",
  chat_settings: "alt+s",
  new: "alt+n",
  search: "mod+k",
  previous: "alt+ArrowUp",
  next: "alt+ArrowDown",
  sidebar: "mod+b",
  settings: "mod+,",
  help: "?",
} as const;

export type ShortcutName = keyof typeof SHORTCUTS;

interface Offered {
  keys: string;
  run: () => unknown;
}

let offered: readonly Offered[] = [];

export const isMac = /mac|iphone|ipad/i.test(navigator.platform);

/** Offers a shortcut as long as the component is shown; `run` may return false to leave the key to others. */
export function useShortcut(name: ShortcutName, run: () => unknown): void {
  const latest = useRef(run);
  latest.current = run;
  useLayoutEffect(() => {
    const mine = { keys: SHORTCUTS[name], run: () => latest.current() };
    offered = [...offered, mine];
    return () => {
      offered = offered.filter((other) => other !== mine);
    };
  }, [name]);
}

function isField(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement &&
    target.closest("input, textarea, select, [contenteditable]") !== null
  );
}

export function matches(
  keys: string,
  event: Pick<KeyboardEvent, "key" | "code" | "ctrlKey" | "metaKey" | "shiftKey" | "altKey">,
): boolean {
  const parts = keys.split("+");
  const key = parts[parts.length - 1]!;
  const mod = isMac ? event.metaKey : event.ctrlKey;
  const other = isMac ? event.ctrlKey : event.metaKey;
  if (parts.includes("mod") !== mod || other) return false;
  if (parts.includes("alt") !== event.altKey) return false;
  // "?" needs Shift on most keyboards and not on others: for signs only the sign counts.
  const isSign = key.length === 1 && key.toLowerCase() === key.toUpperCase();
  if (!isSign && parts.includes("shift") !== event.shiftKey) return false;
  // With Alt a Mac types other signs, and with Ctrl a Korean keyboard may report the syllable: the key itself counts.
  if ((event.altKey || mod) && /^[a-z]$/.test(key)) return event.code === `Key${key.toUpperCase()}`;
  return event.key.toLowerCase() === key.toLowerCase();
}

window.addEventListener("keydown", (event) => {
  if (event.isComposing || event.defaultPrevented) return;
  if (document.querySelector("dialog[open]")) return;
  // The last registered is the one nearest to the user.
  for (const { keys, run } of offered.toReversed()) {
    if (!matches(keys, event)) continue;
    const isSign = keys.length === 1;
    if (isSign && isField(event.target)) continue;
    if (run() === false) continue;
    event.preventDefault();
    return;
  }
});

/** As printed on the keys: ["Ctrl", "K"]. */
export function keyNames(keys: string): string[] {
  const names: Record<string, string> = isMac
    ? { mod: "⌘", shift: "⇧", alt: "⌥", Escape: "esc", Enter: "↩", ArrowUp: "↑", ArrowDown: "↓" }
    : { mod: "Ctrl", shift: "Shift", alt: "Alt", Escape: "Esc", ArrowUp: "↑", ArrowDown: "↓" };
  return keys.split("+").map((key) => names[key] ?? (key.length === 1 ? key.toUpperCase() : key));
}
