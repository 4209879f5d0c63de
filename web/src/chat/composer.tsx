// Where one writes. The text area is the browser's own, so that a key costs nothing but itself.

import { signal, useComputed, useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { t } from "../i18n";
import { useShortcut } from "../keys";
import { preferences } from "../preferences";
import { IconButton } from "../ui/icon-button";
import type { Choices } from "./choices";
import { ChosenFiles } from "./chosen-files";
import { ContextMeter } from "./context-meter";
import { filesOf, keepDraft, keptDraft } from "./drafts";
import { Meter } from "./meter";
import { ModelPicker } from "./model-picker";
import { ThinkingPicker } from "./thinking-picker";

interface Props {
  choices: Choices;
  /** Drafts are kept under this name until they are sent. */
  draft: string;
  conversation?: string;
  parent: string | null;
  running: boolean;
  onSend: (text: string, files: string[]) => Promise<void>;
  onStop: () => void;
  onSettings: () => void;
  onEditLast?: () => void;
}

/** A question to be asked from elsewhere (a suggestion); what is being written stays. */
export const suggested = signal<string | null>(null);

export function Composer(props: Props) {
  const { choices, draft, conversation, parent, running } = props;
  const area = useRef<HTMLTextAreaElement>(null);
  const attachments = filesOf(draft);
  const meter = useMemo(() => new Meter(), []);
  const empty = useSignal(true);
  const sending = useSignal(false);
  const hasFiles = useComputed(() => attachments.ready.value.length > 0).value;
  const full = useComputed(() => meter.count.value?.fits === false).value;
  const canSend =
    !sending.value && !running && !full && !attachments.busy.value && (!empty.value || hasFiles);

  const measure = () =>
    meter.ask(() => {
      const text = area.current?.value ?? "";
      const files = attachments.ready.peek().map((file) => file.id);
      const model = choices.model.peek();
      if (!model || (text.trim() === "" && files.length === 0)) return null;
      return { model, conversation, parent, text, files, system: choices.system.peek() };
    });

  const changed = () => {
    const text = area.current?.value ?? "";
    empty.value = text.trim() === "";
    keepDraft(draft, text);
    measure();
  };

  useEffect(() => {
    const element = area.current;
    if (!element) return;
    element.value = keptDraft(draft);
    changed();
    if (matchMedia("(pointer: fine)").matches) element.focus();
    return () => meter.stop();
  }, [draft]);
  useEffect(measure, [attachments.ready.value, choices.model.value, choices.system.value, parent]);
  useEffect(() => {
    const text = suggested.value;
    if (text === null || !area.current) return;
    suggested.value = null;
    send(text);
  }, [suggested.value]);

  /** What is written, or `given`. */
  const send = async (given?: string) => {
    const element = area.current;
    if (!element || sending.peek() || running) return;
    sending.value = true;
    try {
      if (given === undefined) await sendWritten(element);
      else await props.onSend(given, []);
    } catch {
      // Whoever sends has said why.
    } finally {
      sending.value = false;
    }
  };

  const sendWritten = async (element: HTMLTextAreaElement) => {
    const written = element.value;
    const text = written.trim();
    const files = attachments.ready.peek().map((file) => file.id);
    if (meter.count.peek()?.fits === false || attachments.busy.peek()) return;
    if (text === "" && files.length === 0) return;
    element.value = "";
    empty.value = true;
    // Meanwhile more may be written, here or, where this one has gone, in another composer.
    const isHere = () => area.current === element;
    try {
      await props.onSend(text, files);
      if (isHere() || keptDraft(draft) === written) keepDraft(draft, element.value);
      attachments.forget(files);
      meter.count.value = null;
    } catch (error) {
      const rest = isHere() ? element.value : keptDraft(draft);
      const words = rest.includes(text) ? rest : [text, rest.trim()].filter(Boolean).join("\n\n");
      if (isHere()) element.value = words;
      if (isHere()) changed();
      else keepDraft(draft, words);
      throw error;
    }
  };

  const sendsOnEnter = preferences.value.enter_sends !== false;
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.isComposing || event.keyCode === 229) return; // an IME's Enter ends a syllable, not a message
    if (event.key === "Enter") {
      const mod = event.ctrlKey || event.metaKey;
      if (mod || (sendsOnEnter && !event.shiftKey && !isTouch())) {
        event.preventDefault();
        send();
      }
    } else if (event.key === "ArrowUp" && area.current?.value === "" && props.onEditLast) {
      event.preventDefault();
      props.onEditLast();
    }
  };

  useShortcut("write", () => area.current?.focus());

  return (
    <form
      class="composer"
      aria-label={t("composer.label")}
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
      onMouseUp={(event) => {
        if (event.target === event.currentTarget) area.current?.focus();
      }}
    >
      <DropTarget onFiles={(files) => attachments.add(files)} />
      <ChosenFiles attachments={attachments} />
      <textarea
        ref={area}
        class="composer-text"
        rows={1}
        dir="auto"
        placeholder={t("composer.placeholder")}
        aria-label={t("composer.message")}
        enterkeyhint={isTouch() ? "enter" : "send"}
        onInput={changed}
        onKeyDown={onKeyDown}
        onPaste={(event) => {
          const files = [...(event.clipboardData?.files ?? [])];
          if (files.length === 0) return;
          event.preventDefault();
          attachments.add(files);
        }}
      />
      <div class="composer-row">
        <AttachButton onFiles={(files) => attachments.add(files)} />
        <ModelPicker choices={choices} />
        <ThinkingPicker choices={choices} />
        <IconButton icon="sliders" label={t("composer.settings")} onClick={props.onSettings} />
        <span class="grow" />
        <ContextMeter meter={meter} />
        {running ? (
          <button
            type="button"
            class="send"
            aria-label={t("composer.stop")}
            title={t("composer.stop")}
            onClick={props.onStop}
          >
            <svg class="icon solid" viewBox="0 0 24 24" aria-hidden="true">
              <rect x="7" y="7" width="10" height="10" rx="1.5" />
            </svg>
          </button>
        ) : (
          <button
            type="submit"
            class="send"
            aria-label={t("composer.send")}
            title={t("composer.send")}
            disabled={!canSend}
          >
            <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
              <path d="M12 19V5M6 11l6-6 6 6" />
            </svg>
          </button>
        )}
      </div>
    </form>
  );
}

function AttachButton({ onFiles }: { onFiles: (files: File[]) => void }) {
  const input = useRef<HTMLInputElement>(null);
  useShortcut("attach", () => input.current?.click());
  return (
    <>
      <IconButton icon="clip" label={t("files.attach")} onClick={() => input.current?.click()} />
      <input
        ref={input}
        class="visually-hidden"
        type="file"
        multiple
        tabIndex={-1}
        aria-label={t("files.attach")}
        onChange={(event) => {
          onFiles([...(event.currentTarget.files ?? [])]);
          event.currentTarget.value = "";
        }}
      />
    </>
  );
}

/** Files may be dropped anywhere on the page. */
function DropTarget({ onFiles }: { onFiles: (files: File[]) => void }) {
  const over = useSignal(false);
  const latest = useRef(onFiles);
  latest.current = onFiles;
  useEffect(() => {
    let leaving: ReturnType<typeof setTimeout>;
    const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") === true;
    const onOver = (event: DragEvent) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      over.value = true;
      clearTimeout(leaving);
      leaving = setTimeout(() => {
        over.value = false;
      }, 250);
    };
    const onDrop = (event: DragEvent) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      over.value = false;
      latest.current([...(event.dataTransfer?.files ?? [])]);
    };
    window.addEventListener("dragover", onOver);
    window.addEventListener("drop", onDrop);
    return () => {
      clearTimeout(leaving);
      window.removeEventListener("dragover", onOver);
      window.removeEventListener("drop", onDrop);
    };
  }, []);
  return over.value ? <div class="drop">{t("files.drop")}</div> : null;
}

function isTouch(): boolean {
  return matchMedia("(pointer: coarse)").matches;
}
