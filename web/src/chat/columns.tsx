// Two models on the same question, side by side; one of them is what the conversation goes on from.

import { t } from "../i18n";
import type { OpenConversation } from "./conversation";
import { Answer } from "./message";

/** `chosen`, and the newest answer of every other model that was asked together with it. */
export function columnsOf(
  chat: OpenConversation,
  question: string,
  chosen: string | undefined,
): string[] {
  if (!chosen) return [];
  const together = chat.together(chosen);
  const columns = new Map([[chat.message(chosen).peek().model, chosen]]);
  const order = chat.children(question);
  for (const id of order.toReversed()) {
    const { model } = chat.message(id).peek();
    if (chat.together(id) === together && !columns.has(model)) columns.set(model, id);
  }
  return [...columns.values()].sort((a, b) => order.indexOf(a) - order.indexOf(b));
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
            branches={id === chosen && chat.siblings(id).length > ids.length}
            onRegenerate={onRegenerate(id)}
            onContinue={onContinue(id)}
          />
        </section>
      ))}
    </div>
  );
}
