// What the pages around the chat share: heading, loading and failing, facts, bars, confirmations.

import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { t } from "../i18n";
import { Dialog } from "../ui/dialog";
import { Icon } from "../ui/icons";
import { say } from "../ui/toasts";
import "./pages.css";

export function PageFrame({
  title,
  lede,
  children,
  busy,
}: {
  title: string;
  lede?: ComponentChildren;
  children: ComponentChildren;
  busy?: boolean;
}) {
  useEffect(() => {
    document.title = `${title} · mull`;
  }, [title]);
  return (
    <main class="page" id="main" tabIndex={-1} aria-busy={busy}>
      <div class="column">
        <h1>{title}</h1>
        {lede && <p class="lede">{lede}</p>}
        {children}
      </div>
    </main>
  );
}

/** Waiting for the first answer, or why there is none. */
export function Waiting({ error, again }: { error: Error | null; again: () => void }) {
  if (!error) return <p class="quiet">{t("pages.loading")}</p>;
  return (
    <div class="notice danger" role="alert">
      <Icon name="warning" />
      <div>
        <p dir="auto">{error.message}</p>
        <button type="button" class="button" onClick={again}>
          {t("action.retry")}
        </button>
      </div>
    </div>
  );
}

export function Facts({ facts }: { facts: [string, ComponentChildren][] }) {
  return (
    <dl class="fact-list">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** A bar from 0 to `of`; without `of` it only says that something goes on. */
export function Bar({ value, of, label }: { value: number; of: number | null; label: string }) {
  const share = of ? Math.min(1, value / of) : null;
  return (
    <div
      class={share === null ? "bar unknown" : "bar"}
      role="progressbar"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={share === null ? undefined : Math.round(share * 100)}
    >
      <span style={{ width: `${(share ?? 0) * 100}%` }} />
    </div>
  );
}

/** A state told by words and a dot, so by more than its colour. */
export function State({ kind, children }: { kind: string; children: ComponentChildren }) {
  return <span class={`state ${kind}`}>{children}</span>;
}

/** A button that is busy until what it started is done, and says what went wrong. */
export function ActionButton({
  run,
  children,
  class: extra = "",
  label,
  disabled,
}: {
  run: () => Promise<unknown>;
  children: ComponentChildren;
  class?: string;
  label?: string;
  disabled?: boolean;
}) {
  const [busy, setBusy] = useState(false);
  const click = () => {
    setBusy(true);
    run()
      .catch(say)
      .finally(() => setBusy(false));
  };
  return (
    <button
      type="button"
      class={`button ${extra}`}
      aria-label={label}
      aria-busy={busy}
      disabled={busy || disabled}
      onClick={click}
    >
      {children}
    </button>
  );
}

export function Confirm({
  title,
  text,
  action,
  run,
  onClose,
}: {
  title: string;
  text: string;
  action: string;
  run: () => Promise<unknown>;
  onClose: () => void;
}) {
  return (
    <Dialog title={title} onClose={onClose}>
      <p dir="auto">{text}</p>
      <div class="dialog-actions">
        <button type="button" class="button" onClick={onClose}>
          {t("action.cancel")}
        </button>
        <ActionButton class="danger" run={() => run().then(onClose)}>
          {action}
        </ActionButton>
      </div>
    </Dialog>
  );
}
