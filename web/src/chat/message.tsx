// One message: a question (with its files, its edits) or an answer (with its thinking and its facts).

import { useComputed } from "@preact/signals";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Message } from "../api/types";
import { language, number, t } from "../i18n";
import { Markdown } from "../markdown/markdown";
import { modelNamed } from "../models";
import { CopyButton } from "../ui/copy-button";
import { IconButton } from "../ui/icon-button";
import { Icon } from "../ui/icons";
import { say } from "../ui/toasts";
import type { OpenConversation } from "./conversation";
import { keepDraft, keptDraft } from "./drafts";
import { Facts } from "./facts";
import { FileName } from "./file-chip";
import type { LiveAnswer } from "./live";
import { Thinking } from "./thinking";

interface Props {
  id: string;
  chat: OpenConversation;
  /** The whole text stands as plain words until it is near to being seen. */
  near: boolean;
}

type Sends = (text: string) => Promise<void>;

export function Question({ id, chat, near, onEdit }: Props & { onEdit: Sends }) {
  const message = chat.message(id).value;
  const [editing, edit] = useState(false);
  if (editing) {
    return (
      <Editor
        text={message.text}
        draft={`edit.${id}`}
        onSend={onEdit}
        onClose={() => edit(false)}
      />
    );
  }
  return (
    <article class="message question" id={`m-${id}`} aria-label={t("message.question")}>
      {message.files.length > 0 && (
        <ul class="files" aria-label={t("files.attached")}>
          {message.files.map((file) => (
            <li key={file.id}>
              <FileName file={file} />
            </li>
          ))}
        </ul>
      )}
      {message.text && <QuestionText text={message.text} near={near} />}
      <div class="actions">
        <Branches id={id} chat={chat} />
        <IconButton icon="edit" label={t("message.edit")} class="edit" onClick={() => edit(true)} />
        <CopyButton text={message.text} compact />
      </div>
    </article>
  );
}

const LONG_QUESTION = 1200;

/** What one has pasted oneself one seldom reads again: a long question is folded. */
function QuestionText({ text, near }: { text: string; near: boolean }) {
  const [whole, show] = useState(false);
  const long = text.length > LONG_QUESTION || text.split("\n", 16).length > 15;
  const shown =
    long && !whole ? `${text.slice(0, LONG_QUESTION).split("\n").slice(0, 12).join("\n")} …` : text;
  return (
    <div class="bubble" dir="auto">
      {near ? shown : shown.slice(0, 4000)}
      {long && (
        <button type="button" class="fold" onClick={() => show(!whole)}>
          {whole ? t("message.less") : t("message.whole", { n: text.length })}
        </button>
      )}
    </div>
  );
}

/** Closes once the new wording is taken, or given up. */
function Editor({
  text,
  draft,
  onSend,
  onClose,
}: {
  text: string;
  draft: string;
  onSend: Sends;
  onClose: () => void;
}) {
  const area = useRef<HTMLTextAreaElement>(null);
  const sending = useRef(false);
  const written = useMemo(() => keptDraft(draft) || text, []);
  useLayoutEffect(() => {
    area.current?.focus();
    area.current?.setSelectionRange(written.length, written.length);
  }, []);
  const close = () => {
    keepDraft(draft, "");
    onClose();
  };
  const send = () => {
    const value = area.current?.value.trim();
    if (!value || sending.current) return;
    sending.current = true;
    onSend(value)
      .then(close, say)
      .finally(() => {
        sending.current = false;
      });
  };
  return (
    <form
      class="editor"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <textarea
        ref={area}
        class="input"
        aria-label={t("message.edit")}
        defaultValue={written}
        dir="auto"
        rows={Math.min(12, written.split("\n").length + 1)}
        onInput={(event) => keepDraft(draft, event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.isComposing) return;
          if (event.key === "Escape") {
            event.stopPropagation();
            event.preventDefault();
            close();
          } else if (event.key === "Enter" && !event.shiftKey) {
            event.preventDefault();
            send();
          }
        }}
      />
      <div class="row">
        <span class="hint">{t("message.edit_hint")}</span>
        <button type="button" class="button quiet" onClick={close}>
          {t("action.cancel")}
        </button>
        <button type="submit" class="button primary">
          {t("composer.send")}
        </button>
      </div>
    </form>
  );
}

interface AnswerProps extends Props {
  onRegenerate: () => void;
  onContinue: () => void;
  /** In a comparison the model is the heading. */
  compared?: boolean;
  branches?: boolean;
  last: boolean;
}

export function Answer({
  id,
  chat,
  near,
  onRegenerate,
  onContinue,
  compared,
  branches = true,
  last,
}: AnswerProps) {
  const message = chat.message(id).value;
  const live = useComputed(() => chat.live.value.get(id)).value;
  const running = live !== undefined;
  return (
    <article
      class="message answer"
      id={`m-${id}`}
      aria-label={t("message.answer")}
      aria-busy={running}
    >
      <Thinking message={message} live={live} onAnswerNow={() => chat.answerNow()} />
      {running && message.text === "" && message.thinking === "" && <Waiting chat={chat} id={id} />}
      {message.text !== "" &&
        (near ? <Markdown text={message.text} growing={running} /> : <Plain text={message.text} />)}
      {message.tool_calls.map((call, index) => (
        <pre class="tool-call" key={index} dir="ltr">
          <code>{toolCallText(call)}</code>
        </pre>
      ))}
      {!running && (
        <Ending message={message} onRegenerate={onRegenerate} onContinue={onContinue} last={last} />
      )}
      {!running && (
        <div class="actions">
          {branches && <Branches id={id} chat={chat} />}
          <CopyButton text={message.text} compact />
          <IconButton icon="again" label={t("message.regenerate")} onClick={onRegenerate} />
          {!compared && message.model && <span class="by">{message.model}</span>}
          <Facts message={message} />
        </div>
      )}
    </article>
  );
}

function toolCallText(call: Message["tool_calls"][number]): string {
  const name = call.function?.name ?? call.name ?? "";
  const given = call.function?.arguments ?? call.arguments ?? "";
  return `${name}(${typeof given === "string" ? given : JSON.stringify(given, null, 2)})`;
}

function Plain({ text }: { text: string }) {
  return (
    <div class="prose">
      <p class="plain" dir="auto">
        {text.slice(0, 20_000)}
      </p>
    </div>
  );
}

/** Before the first token: reading the question, waiting for others, or loading the model. */
function Waiting({ chat, id }: { chat: OpenConversation; id: string }) {
  return <Waits live={chat.live.value.get(id)} model={chat.message(id).value.model} />;
}

/** live: once the answer has begun. */
export function Waits({ live, model: name }: { live?: LiveAnswer; model?: string | null }) {
  const model = modelNamed(name ?? null);
  const [late, setLate] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setLate(true), 900);
    return () => clearTimeout(timer);
  }, []);
  const place = live?.progress.value.queue_position;
  const words = live?.waiting.value
    ? t("waiting.server")
    : place
      ? t("waiting.queue", { n: place })
      : late && model && !model.loaded
        ? t("waiting.loading", { model: model.name })
        : t("waiting.reading");
  return (
    <p class="waiting" role="status">
      <span class="pulse" aria-hidden="true" />
      {words}
    </p>
  );
}

/** How an answer ended, where it did not simply end, and what can be done. */
function Ending({
  message,
  onRegenerate,
  onContinue,
  last,
}: {
  message: Message;
  onRegenerate: () => void;
  onContinue: () => void;
  last: boolean;
}) {
  if (message.state === "failed") {
    return (
      <div class="notice danger" role="alert">
        <Icon name="warning" />
        <div>
          <p dir="auto">{message.error || t("ending.failed")}</p>
          <button type="button" class="fold" onClick={onRegenerate}>
            {t("action.retry")}
          </button>
        </div>
      </div>
    );
  }
  const cut = message.finish_reason === "length";
  const stopped = message.state === "stopped";
  if (!cut && !stopped) return null;
  const empty = message.text === "";
  const words = cut
    ? t(empty ? "ending.length_thinking" : "ending.length")
    : t(empty ? "ending.stopped_empty" : "ending.stopped");
  return (
    <p class="ending">
      <span>{words}</span>
      {last && !empty && (
        <button type="button" class="fold" onClick={onContinue}>
          <Icon name="forward" />
          {t("ending.continue")}
        </button>
      )}
      {last && empty && (
        <button type="button" class="fold" onClick={onRegenerate}>
          <Icon name="again" />
          {t("message.regenerate")}
        </button>
      )}
    </p>
  );
}

/** "‹ 2 / 3 ›", where a message has siblings. */
function Branches({ id, chat }: { id: string; chat: OpenConversation }) {
  const siblings = chat.siblings(id);
  if (siblings.length < 2) return null;
  const at = siblings.indexOf(id);
  const go = (to: number) => {
    const target = siblings[to];
    if (target) chat.goTo(target);
  };
  void language.value;
  return (
    <fieldset class="branches" aria-label={t("branches.label")}>
      <IconButton
        icon="left"
        label={t("branches.before")}
        disabled={at <= 0}
        onClick={() => go(at - 1)}
      />
      <span aria-label={t("branches.at", { at: at + 1, of: siblings.length })}>
        {number(at + 1)} / {number(siblings.length)}
      </span>
      <IconButton
        icon="right"
        label={t("branches.after")}
        disabled={at >= siblings.length - 1}
        onClick={() => go(at + 1)}
      />
    </fieldset>
  );
}
