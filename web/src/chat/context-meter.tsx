import { t } from "../i18n";
import type { Meter } from "./meter";

const SAID_FROM = 0.25;
const WARNED_FROM = 0.8;

/** A thin ring that fills; in words when it becomes tight. */
export function ContextMeter({ meter }: { meter: Meter }) {
  const count = meter.count.value;
  if (!count || count.context <= 0) return <span class="meter" role="status" />;
  const part = Math.min(1, count.prompt_tokens / count.context);
  const level = !count.fits ? "over" : part >= WARNED_FROM ? "near" : "fine";
  const words = !count.fits
    ? t("meter.over", { tokens: count.prompt_tokens, context: count.context })
    : t("meter.part", { tokens: count.prompt_tokens, context: count.context });
  const round = 2 * Math.PI * 8;
  return (
    <span class={`meter ${level}`} role="status" title={words}>
      {(part >= SAID_FROM || level !== "fine") && <span class="meter-words">{words}</span>}
      {level === "fine" && part < SAID_FROM && <span class="visually-hidden">{words}</span>}
      <svg viewBox="0 0 20 20" aria-hidden="true">
        <circle cx="10" cy="10" r="8" class="meter-track" />
        <circle
          cx="10"
          cy="10"
          r="8"
          class="meter-part"
          stroke-dasharray={`${part * round} ${round}`}
        />
      </svg>
    </span>
  );
}
