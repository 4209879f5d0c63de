// Figures for people: long times, energy, large counts.

import { language, number, seconds, t } from "../i18n";

/** "40 s", "3 min", "5 h 20 min", "2 d 4 h". */
export function duration(value: number): string {
  if (value < 90)
    return seconds(Math.round(value) === value || value >= 10 ? Math.round(value) : value);
  const minutes = Math.round(value / 60);
  if (minutes < 90) return t("unit.minutes_only", { n: minutes });
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return t("unit.hours", { h: hours, m: minutes % 60 });
  return t("unit.days", { d: Math.floor(hours / 24), h: hours % 24 });
}

export function energy(joules: number): string {
  if (joules < 3600) return t("unit.joules", { n: Math.round(joules) });
  return t("unit.watt_hours", { n: Math.round(joules / 3600) });
}

/** "135M", "1.35억": three figures in the language's own steps. */
export function compact(count: number): string {
  return new Intl.NumberFormat(language.value, {
    notation: "compact",
    maximumSignificantDigits: 3,
  }).format(count);
}

/** Tokens per second and the like: one digit after the point only where it says something. */
export function rate(value: number): string {
  return number(value, value < 10 ? 1 : 0);
}
