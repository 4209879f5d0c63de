// What has been said, top to bottom: turns of one question and what answers it.

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { t } from "../i18n";
import { anchor } from "../router";
import { IconButton } from "../ui/icon-button";
import { say } from "../ui/toasts";
import { asking, type Choices } from "./choices";
import { Columns, columnsOf } from "./columns";
import type { OpenConversation } from "./conversation";
import { Answer, Question, Waits } from "./message";

interface TurnIds {
  question: string | null;
  answers: string[];
}

/** The path cut into turns: every question begins one. */
export function turnsOf(path: readonly string[], roleOf: (id: string) => string): TurnIds[] {
  const turns: TurnIds[] = [];
  for (const id of path) {
    if (roleOf(id) === "user") turns.push({ question: id, answers: [] });
    else if (turns.length === 0) turns.push({ question: null, answers: [id] });
    else turns.at(-1)!.answers.push(id);
  }
  return turns;
}

const NEAR_AT_FIRST = 3;

export function Turns({ chat, choices }: { chat: OpenConversation; choices: Choices }) {
  const scroller = useRef<HTMLDivElement>(null);
  const away = useSignal(false);
  const path = chat.path.value;
  const turns = turnsOf(path, (id) => chat.message(id).peek().role);
  const fresh = chat.fresh.value;

  // A chat opens at its end, or at the message that was searched for.
  const wanted = anchor.value.startsWith("m-") ? anchor.value.slice(2) : null;
  // Turns find their true heights only once they are seen, so the end is held until one leaves it.
  const follows = useRef(false);
  useLayoutEffect(() => {
    const element = scroller.current;
    follows.current = !wanted;
    if (element && !wanted) element.scrollTop = element.scrollHeight;
  }, [chat.id]);
  useLayoutEffect(() => {
    if (!wanted || !chat.has(wanted)) return;
    chat.reveal(wanted);
    const frame = requestAnimationFrame(() => {
      const target = document.getElementById(`m-${wanted}`);
      target?.scrollIntoView({ block: "start" });
      target?.classList.add("found");
    });
    return () => cancelAnimationFrame(frame);
  }, [chat.id, wanted]);
  // What was just sent goes to the top, and its answer is read from there.
  useLayoutEffect(() => {
    if (!fresh) return;
    follows.current = false;
    const turn = document.getElementById(`turn-${fresh}`);
    turn?.scrollIntoView({ block: "start", behavior: calm() ? "auto" : "smooth" });
  }, [fresh]);

  const seen = useRef({ top: 0, height: 0 });
  const watch = () => {
    const element = scroller.current;
    if (!element) return;
    const { scrollTop: top, scrollHeight: height } = element;
    if (height === seen.current.height && top < seen.current.top) follows.current = false;
    seen.current = { top, height };
    away.value = element.scrollHeight - element.scrollTop - element.clientHeight > 160;
  };
  useEffect(() => {
    const element = scroller.current;
    if (!element) return;
    const grown = new ResizeObserver(() => {
      if (follows.current) element.scrollTop = element.scrollHeight;
      watch();
    });
    if (element.firstElementChild) grown.observe(element.firstElementChild);
    return () => grown.disconnect();
  }, [chat.id]);

  return (
    <>
      <div
        class="scroller"
        ref={scroller}
        tabIndex={-1}
        onScroll={watch}
        onWheel={(event) => {
          if (event.deltaY < 0) follows.current = false;
        }}
        onTouchMove={() => {
          follows.current = false;
        }}
      >
        <div class="turns" role="log" aria-label={t("chat.log")} aria-live="off">
          {turns.map((turn, index) => {
            const key = turn.question ?? turn.answers[0]!;
            return (
              <Turn
                key={key}
                turn={turn}
                chat={chat}
                choices={choices}
                last={index === turns.length - 1}
                near={index >= turns.length - NEAR_AT_FIRST}
                fresh={turn.question === fresh && fresh !== null}
              />
            );
          })}
        </div>
      </div>
      {away.value && (
        <div class="to-end">
          <IconButton
            icon="down"
            label={t("chat.to_end")}
            onClick={() => {
              follows.current = true;
              const element = scroller.current;
              element?.scrollTo({
                top: element.scrollHeight,
                behavior: calm() ? "auto" : "smooth",
              });
            }}
          />
        </div>
      )}
    </>
  );
}

interface TurnProps {
  turn: TurnIds;
  chat: OpenConversation;
  choices: Choices;
  last: boolean;
  near: boolean;
  fresh: boolean;
}

function Turn({ turn, chat, choices, last, near: nearAtFirst, fresh }: TurnProps) {
  const root = useRef<HTMLElement>(null);
  const near = useNear(root, nearAtFirst);
  const { question, answers } = turn;
  const hasAnswer = answers.length > 0;
  const begins = question !== null && chat.starting.value.has(question);
  const columns = question === null ? [] : columnsOf(chat, question, answers[0]);
  const regenerate = (id: string) => () => {
    const wish = asking(choices);
    const again =
      columns.length > 1
        ? chat.regenerateBeside(id, wish.settings)
        : chat.regenerate(id, { ...wish, models: wish.models.slice(0, 1) });
    again.catch(say);
  };
  const continued = (id: string) => () => {
    const { model } = chat.message(id).peek();
    const wish = asking(choices);
    chat.continueAnswer(id, { ...wish, models: model ? [model] : wish.models }).catch(say);
  };
  const lines = near ? 0 : estimatedLines(chat, [question, ...answers]);
  return (
    <section
      ref={root}
      id={question ? `turn-${question}` : undefined}
      class={`turn ${fresh && last ? "fresh" : ""}`}
      style={near ? undefined : { containIntrinsicBlockSize: `auto ${lines * 28 + 120}px` }}
    >
      {question && (
        <Question
          id={question}
          chat={chat}
          near={near}
          onEdit={(text) => {
            const { parent, files } = chat.message(question).peek();
            const ids = files.map((file) => file.id);
            return chat.ask(parent, text, ids, asking(choices));
          }}
        />
      )}
      {columns.length > 1 ? (
        <Columns
          chat={chat}
          ids={columns}
          chosen={answers[0]}
          near={near}
          last={last}
          onRegenerate={regenerate}
          onContinue={continued}
        />
      ) : (
        answers.map((id) => (
          <Answer
            key={id}
            id={id}
            chat={chat}
            near={near}
            last={last}
            onRegenerate={regenerate(id)}
            onContinue={continued(id)}
          />
        ))
      )}
      {begins && !hasAnswer && <Waits model={choices.model.value} />}
      {question && !hasAnswer && last && !begins && (
        <p class="ending">
          <span>{t("chat.unanswered")}</span>
          <button
            type="button"
            class="fold"
            onClick={() => chat.answer(question, asking(choices)).catch(say)}
          >
            {t("chat.answer_it")}
          </button>
        </p>
      )}
    </section>
  );
}

/** Whether a turn is, or has once been, near to being seen. */
function useNear(root: { current: HTMLElement | null }, atFirst: boolean): boolean {
  const near = useSignal(atFirst);
  useEffect(() => {
    const element = root.current;
    if (near.peek() || !element) return;
    const observer = new IntersectionObserver(
      ([entry]) => {
        if (!entry?.isIntersecting) return;
        near.value = true;
        observer.disconnect();
      },
      { root: element.closest(".scroller"), rootMargin: "1200px 0px" },
    );
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  return near.value;
}

function estimatedLines(chat: OpenConversation, ids: (string | null)[]): number {
  let lines = 0;
  for (const id of ids) {
    if (id) lines += Math.ceil(chat.message(id).peek().text.length / 75);
  }
  return Math.min(lines, 2000);
}

function calm(): boolean {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
