// Short messages at the edge: what went wrong and what to do, or an undo.

import { signal } from "@preact/signals";
import { ApiError } from "../api/client";
import { t } from "../i18n";
import { IconButton } from "./icon-button";

interface Toast {
  id: number;
  text: string;
  kind: "info" | "error";
  action?: { label: string; run: () => void };
}

const toasts = signal<Toast[]>([]);
const SHOWN_MS = 7000;
let counter = 0;

export function toast(
  text: string,
  options: Partial<Omit<Toast, "id" | "text">> & { ms?: number } = {},
): () => void {
  counter += 1;
  const id = counter;
  const close = () => {
    toasts.value = toasts.peek().filter((other) => other.id !== id);
  };
  const same = toasts.peek().filter((other) => other.text !== text);
  toasts.value = [
    ...same.slice(-2),
    { id, text, kind: options.kind ?? "info", action: options.action },
  ];
  setTimeout(close, options.ms ?? SHOWN_MS);
  return close;
}

/** Says an error in words; what was cancelled on purpose is none. */
export function say(error: unknown): void {
  if (error instanceof DOMException && error.name === "AbortError") return;
  if (error instanceof ApiError && error.status === 401) return; // the login page says it
  toast(error instanceof Error ? error.message : String(error), { kind: "error", ms: 10_000 });
}

export function Toasts() {
  return (
    <section class="toasts" aria-label={t("toast.region")} aria-live="polite">
      {toasts.value.map((one) => (
        <div
          key={one.id}
          class={`toast ${one.kind}`}
          role={one.kind === "error" ? "alert" : undefined}
        >
          <p dir="auto">{one.text}</p>
          {one.action && (
            <button
              type="button"
              class="button quiet"
              onClick={() => {
                one.action?.run();
                toasts.value = toasts.value.filter((other) => other.id !== one.id);
              }}
            >
              {one.action.label}
            </button>
          )}
          <IconButton
            icon="close"
            label={t("toast.dismiss")}
            onClick={() => {
              toasts.value = toasts.value.filter((other) => other.id !== one.id);
            }}
          />
        </div>
      ))}
    </section>
  );
}
