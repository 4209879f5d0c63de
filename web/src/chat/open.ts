// Which conversation is open, and how one is begun.

import { signal } from "@preact/signals";
import { ApiError, api, type ConversationPatch } from "../api/client";
import { changed, changeItem } from "../conversations";
import { t } from "../i18n";
import { navigate } from "../router";
import { asking, type Choices, forChat, forgetNewChat, forNewChat } from "./choices";
import { OpenConversation } from "./conversation";

export interface OpenChat {
  chat: OpenConversation;
  choices: Choices;
}

export type Opening =
  | { state: "loading" }
  | { state: "failed"; error: string; gone: boolean }
  | ({ state: "open" } & OpenChat);

export const opening = signal<Opening>({ state: "loading" });
let wanted = "";

export async function open(id: string): Promise<void> {
  wanted = id;
  const now = opening.peek();
  if (now.state === "open") {
    if (now.chat.id === id) return;
    now.chat.close();
  }
  opening.value = { state: "loading" };
  try {
    const conversation = await api.conversation(id);
    if (wanted !== id) return;
    const chat = new OpenConversation(conversation);
    opening.value = { state: "open", chat, choices: forChat(chat, null) };
  } catch (error) {
    if (wanted !== id) return;
    const gone = error instanceof ApiError && error.status === 404;
    if (error instanceof ApiError && error.isOffline) {
      setTimeout(() => wanted === id && open(id), 1500); // the page recovers by itself
      return;
    }
    const words = gone ? t("chat.gone") : error instanceof Error ? error.message : String(error);
    opening.value = { state: "failed", error: words, gone };
  }
}

export function leave(): void {
  wanted = "";
  const now = opening.peek();
  if (now.state === "open") now.chat.close();
  opening.value = { state: "loading" };
}

/** The first question makes the conversation. */
export async function begin(text: string, files: string[]): Promise<void> {
  const choices = forNewChat;
  const conversation = await api.addConversation({
    model: choices.model.peek() || undefined,
    system: choices.system.peek() ?? undefined,
    settings: choices.settings.peek(),
  });
  const chat = new OpenConversation({ ...conversation, messages: conversation.messages ?? [] });
  try {
    await chat.ask(null, text, files, asking(choices));
  } catch (error) {
    api.removeConversation(chat.id).catch(() => {}); // nothing was said in it
    throw error;
  }
  wanted = chat.id;
  opening.value = { state: "open", chat, choices: forChat(chat, choices.beside.peek()) };
  forgetNewChat();
  navigate(`/c/${chat.id}`);
  changed();
}

/** From the list or its own head: both show it. */
export function changeConversation(id: string, change: ConversationPatch): void {
  const now = opening.peek();
  if (now.state === "open" && now.chat.id === id) now.chat.show(change);
  changeItem(id, change);
}
