// The chat page: a new one, or the conversation at /c/ID.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { t } from "../i18n";
import { useShortcut } from "../keys";
import { copy } from "../ui/copy-button";
import { Icon } from "../ui/icons";
import { say, toast } from "../ui/toasts";
import { ChatHeader } from "./chat-header";
import { ChatSettingsDialog } from "./chat-settings";
import { asking, forNewChat } from "./choices";
import { Composer } from "./composer";
import { begin, leave, type OpenChat, open, opening } from "./open";
import { Turns } from "./turns";
import { Welcome } from "./welcome";

export function NewChat() {
  const settings = useSignal(false);
  useEffect(() => {
    document.title = "mull";
  }, []);
  useShortcut("chat_settings", () => {
    settings.value = true;
  });
  return (
    <main class="chat new" id="main">
      <Welcome>
        <Composer
          choices={forNewChat}
          draft="new"
          parent={null}
          running={false}
          onSend={(text, files) => begin(text, files).catch(sayAndRethrow)}
          onStop={() => {}}
          onSettings={() => {
            settings.value = true;
          }}
        />
      </Welcome>
      {settings.value && (
        <ChatSettingsDialog
          choices={forNewChat}
          onClose={() => {
            settings.value = false;
          }}
        />
      )}
    </main>
  );
}

export function Chat({ id }: { id: string }) {
  useEffect(() => {
    open(id);
  }, [id]);
  useEffect(() => leave, []);
  const now = opening.value;
  if (now.state === "open" && now.chat.id === id)
    return <Open key={id} chat={now.chat} choices={now.choices} />;
  if (now.state === "failed") {
    return (
      <main class="page" id="main">
        <div class="column">
          <h1>{now.error}</h1>
          <p class="lede">{t("error.unknown_page_next")}</p>
          {!now.gone && (
            <button type="button" class="button primary" onClick={() => open(id)}>
              {t("action.retry")}
            </button>
          )}
        </div>
      </main>
    );
  }
  return <main class="chat" id="main" aria-busy="true" />;
}

function Open({ chat, choices }: OpenChat) {
  const settings = useSignal(false);
  const title = chat.item.value.title || t("list.untitled");
  const running = chat.busy.value;
  useEffect(() => {
    document.title = `${title} · mull`;
  }, [title]);

  const path = chat.path.value;
  const tip = path.at(-1) ?? null;
  const tipMessage = tip === null ? null : chat.message(tip).peek();
  // A question that was never answered is answered by editing it, not by a second one below it.
  const parent = tipMessage?.role === "user" ? tipMessage.parent : tip;
  const lastAnswer = () => path.findLast((id) => chat.message(id).peek().role === "assistant");

  useShortcut("stop", () => {
    if (!chat.busy.peek()) return false;
    return chat.stop();
  });
  useShortcut("answer_now", () => chat.answerNow());
  useShortcut("regenerate", () => {
    const id = lastAnswer();
    if (id && !chat.busy.peek()) chat.regenerate(id, asking(choices)).catch(say);
  });
  useShortcut("copy", () => {
    const id = lastAnswer();
    if (id) copy(chat.message(id).peek().text).then(() => toast(t("chat.copied")), say);
  });
  useShortcut("chat_settings", () => {
    settings.value = true;
  });

  return (
    <main class="chat" id="main">
      <ChatHeader chat={chat} />
      <Turns chat={chat} choices={choices} />
      <div class="dock">
        {chat.system.value && (
          <button
            type="button"
            class="system-note"
            onClick={() => {
              settings.value = true;
            }}
          >
            <Icon name="sliders" />
            <span dir="auto">{t("chat.system", { text: chat.system.value.slice(0, 80) })}</span>
          </button>
        )}
        <Composer
          choices={choices}
          draft={chat.id}
          conversation={chat.id}
          parent={parent}
          running={running}
          onSend={(text, files) =>
            chat.ask(parent, text, files, asking(choices)).catch(sayAndRethrow)
          }
          onStop={() => chat.stop()}
          onSettings={() => {
            settings.value = true;
          }}
          onEditLast={editLast}
        />
      </div>
      <Announcer running={running} />
      {settings.value && (
        <ChatSettingsDialog
          choices={choices}
          onClose={() => {
            settings.value = false;
          }}
        />
      )}
    </main>
  );
}

function editLast(): void {
  const buttons = document.querySelectorAll<HTMLButtonElement>(".question .edit");
  buttons[buttons.length - 1]?.click();
}

/** Tells a screen reader when an answer begins and is there, instead of reading every token. */
function Announcer({ running }: { running: boolean }) {
  const words = useSignal("");
  const before = useSignal(running);
  useEffect(() => {
    if (before.peek() !== running)
      words.value = running ? t("chat.says_running") : t("chat.says_done");
    before.value = running;
  }, [running]);
  return (
    <p class="visually-hidden" role="status">
      {words.value}
    </p>
  );
}

function sayAndRethrow(error: unknown): never {
  say(error);
  throw error;
}
