import { useEffect, useState } from "preact/hooks";
import { t } from "../i18n";
import { Icon } from "./icons";
import { say } from "./toasts";

export async function copy(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Over plain http from another machine browsers offer only the old way.
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error(t("error.copy"));
}

/** Copies, and says so where the hand is. */
export function CopyButton({
  text,
  label,
  compact,
}: {
  text: string;
  label?: string;
  compact?: boolean;
}) {
  const [done, setDone] = useState(false);
  useEffect(() => {
    if (!done) return;
    const timer = setTimeout(() => setDone(false), 1600);
    return () => clearTimeout(timer);
  }, [done]);
  const name = done ? t("action.copied") : (label ?? t("action.copy"));
  return (
    <button
      type="button"
      class={compact ? "icon-button" : "copy"}
      aria-label={compact ? name : undefined}
      title={compact ? name : undefined}
      onClick={() => copy(text).then(() => setDone(true), say)}
    >
      <Icon name={done ? "check" : "copy"} />
      {!compact && name}
    </button>
  );
}
