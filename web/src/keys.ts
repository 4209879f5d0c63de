// Keyboard shortcuts: whoever offers one registers it while it is on the screen; the list behind "?"
// is made of what is registered.

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Key } from "./i18n";

export interface Shortcut {
  /** "mod+k" (mod is Ctrl, or Command on a Mac), "shift+Escape", "?"; names as in KeyboardEvent.key. */
  keys: string;
  label: Key;
  /** Returning false leaves the key to whoever else wants it. */
  run: () => unknown;
  /** Also while typing in a field; those with "mod" always are. */
  whileTyping?: boolean;
}

export const shortcuts = signal<readonly Shortcut[]>([]);

export const isMac = /mac|iphone|ipad/i.test(navigator.platform);

/** Offers a shortcut as long as the component is shown. */
export function useShortcut(shortcut: Shortcut): void {
  const latest = useRef(shortcut);
  latest.current = shortcut;
  useEffect(() => {
    const entry: Shortcut = { ...latest.current, run: () => latest.current.run() };
    shortcuts.value = [...shortcuts.peek(), entry];
    return () => {
      shortcuts.value = shortcuts.peek().filter((other) => other !== entry);
    };
  }, [shortcut.keys, shortcut.label]);
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
  for (const shortcut of shortcuts.value.toReversed()) {
    if (!matches(shortcut.keys, event)) continue;
    if (isField(event.target) && !shortcut.whileTyping && !shortcut.keys.includes("mod")) continue;
    if (shortcut.run() === false) continue;
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
