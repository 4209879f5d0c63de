// What an answer took: tokens, tokens a second, time, money. One quiet line, the rest on request.

import type { Message } from "../api/types";
import { number, seconds, t, usd } from "../i18n";

export function Facts({ message }: { message: Message }) {
  const { usage, timing, cost_usd: cost } = message;
  if (!usage && !timing) return null;
  const parts: { text: string; title: string }[] = [];
  if (usage) {
    parts.push({
      text: t("facts.tokens", { n: usage.completion_tokens }),
      title: t("facts.tokens_title", {
        prompt: usage.prompt_tokens,
        cached: usage.cached_tokens,
        thinking: usage.reasoning_tokens,
        answer: Math.max(0, usage.completion_tokens - usage.reasoning_tokens),
      }),
    });
  }
  if (timing?.tokens_per_s) {
    parts.push({
      text: t("facts.speed", { v: number(timing.tokens_per_s, timing.tokens_per_s < 10 ? 1 : 0) }),
      title: t("facts.speed_title"),
    });
  }
  if (timing?.total_s) {
    const first = timing.ttft_s === null ? "" : t("facts.first", { s: seconds(timing.ttft_s) });
    parts.push({ text: seconds(timing.total_s), title: first });
  }
  if (cost !== null && cost !== undefined)
    parts.push({ text: usd(cost), title: t("facts.cost_title") });
  return (
    <p class="facts">
      {parts.map((part) => (
        <span key={part.text} title={part.title}>
          {part.text}
        </span>
      ))}
    </p>
  );
}
