// Every string of the page, in every language. English defines the keys; a language that lacks one
// does not compile. "one thing|{n} things" is chosen by n.

import { computed, signal } from "@preact/signals";
import { en } from "./en";
import { ko } from "./ko";
import { pagesEn } from "./pages.en";
import { pagesKo } from "./pages.ko";

const english = { ...en, ...pagesEn };
export type Key = keyof typeof english;
export type Language = "en" | "ko";

const languages: Record<Language, Record<Key, string>> = {
  en: english,
  ko: { ...ko, ...pagesKo },
};

/** What the browser asks for, where nothing has been chosen. */
export function systemLanguage(): Language {
  return navigator.language.toLowerCase().startsWith("ko") ? "ko" : "en";
}

export const language = signal<Language>(
  document.documentElement.lang === "ko" || systemLanguage() === "ko" ? "ko" : "en",
);

export function t(key: Key, values: Record<string, string | number> = {}): string {
  let text = languages[language.value][key];
  const bar = text.indexOf("|");
  if (bar >= 0) text = values.n === 1 ? text.slice(0, bar) : text.slice(bar + 1);
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    if (value === undefined) return whole;
    return typeof value === "number" ? number(value) : value;
  });
}

const locale = computed(() => (language.value === "ko" ? "ko-KR" : "en-GB"));

export function number(value: number, digits = 0): string {
  return value.toLocaleString(locale.value, { maximumFractionDigits: digits });
}

/** "3 min", "1.4 s": short and the same width while it counts. */
export function seconds(value: number): string {
  if (value < 10) return t("unit.seconds", { s: value.toFixed(1) });
  if (value < 90) return t("unit.seconds", { s: Math.round(value) });
  return t("unit.minutes", { m: Math.floor(value / 60), s: Math.round(value % 60) });
}

export function bytes(value: number): string {
  if (value < 1000) return t("unit.bytes", { n: value });
  const units = ["kB", "MB", "GB", "TB"];
  let size = value / 1000;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${number(size, size < 10 ? 1 : 0)} ${units[unit]}`;
}

/** Answers of a small model cost millionths of a dollar: two figures that mean something. */
export function usd(value: number): string {
  if (value === 0) return "$0";
  const digits = value >= 0.1 ? 2 : Math.min(12, 1 - Math.floor(Math.log10(value)));
  return `$${value.toFixed(digits)}`;
}

export function when(iso: string): string {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  const now = new Date();
  const sameDay = date.toDateString() === now.toDateString();
  const options: Intl.DateTimeFormatOptions = sameDay
    ? { hour: "2-digit", minute: "2-digit" }
    : date.getFullYear() === now.getFullYear()
      ? { month: "short", day: "numeric" }
      : { year: "numeric", month: "short", day: "numeric" };
  return new Intl.DateTimeFormat(locale.value, options).format(date);
}
