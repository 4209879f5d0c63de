// Two models on the same question, side by side; one of them is what the conversation goes on from.

import { t } from "../i18n";
import type { OpenConversation } from "./conversation";
import { Answer } from "./message";

const TOGETHER_MS = 30_000;

/** The answers that were asked for together: of different models, begun at the same time as `chosen`. */
export function columnsOf(
  chat: OpenConversation,
  question: string,
  chosen: string | undefined,
): string[] {
  if (!chosen) return [];
  const one = chat.message(chosen).peek();
  const began = Date.parse(one.created);
  const models = new Set([one.model]);
  const columns = [chosen];
  for (const id of chat.children(question).toReversed()) {
    if (id === chosen) continue;
    const other = chat.message(id).peek();
    if (models.has(other.model) || Math.abs(Date.parse(other.created) - began) > TOGETHER_MS)
      continue;
    models.add(other.model);
    columns.push(id);
  }
  const order = chat.children(question);
  return columns.sort((a, b) => order.indexOf(a) - order.indexOf(b));
}

interface Props {
  chat: OpenConversation;
  ids: string[];
  chosen: string | undefined;
  near: boolean;
  last: boolean;
  onRegenerate: (id: string) => () => void;
  onContinue: (id: string) => () => void;
}

export function Columns({ chat, ids, chosen, near, last, onRegenerate, onContinue }: Props) {
  return (
    <div class="columns">
      {ids.map((id) => (
        <section
          key={id}
          class={`side ${id === chosen ? "chosen" : ""}`}
          aria-label={chat.message(id).value.model ?? ""}
        >
          <header class="side-head">
            <bdi>{chat.message(id).value.model}</bdi>
            <button
              type="button"
              class="fold"
              aria-pressed={id === chosen}
              onClick={() => chat.choose(id)}
            >
              {id === chosen ? t("compare.chosen") : t("compare.choose")}
            </button>
          </header>
          <Answer
            id={id}
            chat={chat}
            near={near}
            last={last}
            compared
            onRegenerate={onRegenerate(id)}
            onContinue={onContinue(id)}
          />
        </section>
      ))}
    </div>
  );
}
