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

let saving: ReturnType<typeof setTimeout> | undefined;

/** Changes take effect at once and are saved a moment later. */
export function prefer(change: Partial<Settings>): void {
  preferences.value = { ...preferences.peek(), ...change };
  clearTimeout(saving);
  saving = setTimeout(() => {
    // Not worth a message: the browser has them, and the next change tries again.
    api.saveSettings(preferences.peek()).catch(() => {});
  }, 400);
}

export async function loadPreferences(): Promise<void> {
  const saved = await api.settings();
  if (saved && typeof saved === "object") preferences.value = { ...preferences.peek(), ...saved };
}

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
