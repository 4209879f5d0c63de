// The thinking: it streams in a quieter ink behind a thin rule, and folds itself when the answer starts.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Message } from "../api/types";
import { seconds, t } from "../i18n";
import { Markdown } from "../markdown/markdown";
import { preferences } from "../preferences";
import { Icon } from "../ui/icons";
import type { LiveAnswer } from "./live";

interface Props {
  message: Message;
  live: LiveAnswer | undefined;
  onAnswerNow: () => void;
}

export function Thinking({ message, live, onAnswerNow }: Props) {
  const thinks = live !== undefined && message.text === "" && message.thinking !== "";
  const [chosen, choose] = useState<boolean | null>(null);
  const [tall, setTall] = useState(false);
  const open = chosen ?? (thinks || preferences.value.show_thinking === true);
  if (message.thinking === "") return null;
  return (
    <section class={`thinking ${thinks ? "streams" : ""}`} aria-label={t("thinking.label")}>
      <div class="thinking-head">
        <button type="button" class="fold" aria-expanded={open} onClick={() => choose(!open)}>
          <Icon name={open ? "down" : "right"} />
          {thinks ? <Clock live={live} /> : <Thought message={message} live={live} />}
        </button>
        {thinks && (
          <button type="button" class="answer-now" onClick={onAnswerNow}>
            <Icon name="skip" />
            {t("thinking.answer_now")}
          </button>
        )}
      </div>
      {open && (
        <Trace
          text={message.thinking}
          growing={thinks}
          tall={tall || !thinks}
          onTall={() => setTall(true)}
        />
      )}
    </section>
  );
}

/** While it thinks only its last lines are shown, so that the page stays where it is. */
function Trace({
  text,
  growing,
  tall,
  onTall,
}: {
  text: string;
  growing: boolean;
  tall: boolean;
  onTall: () => void;
}) {
  const box = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  useLayoutEffect(() => {
    const element = box.current;
    if (element && growing && !tall && follows.current) element.scrollTop = element.scrollHeight;
  });
  return (
    <div class="thinking-body">
      <div
        ref={box}
        class={tall ? "trace" : "trace short"}
        tabIndex={tall ? undefined : 0}
        onScroll={(event) => {
          const { scrollTop, scrollHeight, clientHeight } = event.currentTarget;
          follows.current = scrollHeight - scrollTop - clientHeight < 24;
        }}
      >
        <Markdown text={text} growing={growing} />
      </div>
      {!tall && text.length > 900 && (
        <button type="button" class="fold" onClick={onTall}>
          {t("thinking.all")}
        </button>
      )}
    </div>
  );
}

/** Seconds and tokens while they run. */
function Clock({ live }: { live: LiveAnswer }) {
  const [now, tick] = useState(performance.now());
  useEffect(() => {
    const timer = setInterval(() => tick(performance.now()), 200);
    return () => clearInterval(timer);
  }, []);
  const since = live.thinkingSince.value ?? live.startedAt;
  return (
    <span class="clock">
      {t("thinking.running")}
      <span aria-hidden="true">
        {" "}
        {seconds(Math.max(0, now - since) / 1000)} ·{" "}
        {t("facts.tokens", { n: live.progress.value.thinking_tokens })}
      </span>
    </span>
  );
}

function Thought({ message, live }: { message: Message; live: LiveAnswer | undefined }) {
  const measured = live?.thinkingSince.value != null && live.thinkingUntil.value !== null;
  const took =
    message.timing?.thinking_s ??
    (measured ? (live.thinkingUntil.value! - live.thinkingSince.value!) / 1000 : null);
  const tokens = message.usage?.reasoning_tokens ?? live?.progress.value.thinking_tokens ?? 0;
  return (
    <span class="clock">
      {took === null ? t("thinking.done") : t("thinking.done_in", { s: seconds(took) })}
      {tokens > 0 && ` · ${t("facts.tokens", { n: tokens })}`}
    </span>
  );
}
