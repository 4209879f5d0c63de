// What the user has set about the page: kept by the server for its owner, and in this browser so that
// the next start looks right before the server has answered.

import { effect, signal } from "@preact/signals";
import { api } from "./api/client";
import type { Settings } from "./api/types";
import { language, systemLanguage } from "./i18n";

const KEPT = "mull.settings";

export const preferences = signal<Settings>(kept());

function kept(): Settings {
  try {
    const value: unknown = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    return value && typeof value === "object" ? (value as Settings) : {};
  } catch {
    return {};
  }
}

/** What was changed here and the server does not have yet. */
let unsaved: Partial<Settings> = {};
let saving: ReturnType<typeof setTimeout> | undefined;

/** Changes take effect at once and are saved a moment later. */
export function prefer(change: Partial<Settings>): void {
  unsaved = { ...unsaved, ...change };
  preferences.value = { ...preferences.peek(), ...change };
  clearTimeout(saving);
  saving = setTimeout(save, 400);
}

async function save(): Promise<void> {
  const sent = Object.entries(unsaved);
  if (sent.length === 0) return;
  try {
    await api.changeSettings(
      Object.fromEntries(sent.map(([name, value]) => [name, value ?? null])),
    );
  } catch {
    return; // not worth a message: the next change tries again
  }
  const had = new Map(sent);
  unsaved = Object.fromEntries(
    Object.entries(unsaved).filter(([name, value]) => !had.has(name) || had.get(name) !== value),
  );
}

/** The server's; what was changed here before it answered stays. */
export async function loadPreferences(): Promise<void> {
  const saved = await api.settings();
  if (saved && typeof saved === "object") preferences.value = { ...saved, ...unsaved };
}

addEventListener("pagehide", save);

effect(() => {
  const { theme, language: chosen } = preferences.value;
  const root = document.documentElement;
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  else delete root.dataset.theme;
  language.value = chosen === "ko" || chosen === "en" ? chosen : systemLanguage();
  root.lang = language.value;
  try {
    localStorage.setItem(KEPT, JSON.stringify(preferences.value));
  } catch {
    // A browser that keeps nothing still has the server's copy.
  }
});
