// What is chosen around a question: models, thinking, sampling, system prompt. The same controls serve a
// chat that exists (kept with it) and one that does not yet (kept here until its first question).

import { computed, type ReadonlySignal, type Signal, signal } from "@preact/signals";
import type { ChatSettings } from "../api/types";
import { defaultModel, installed, preferModel } from "../models";
import { prefer, preferences } from "../preferences";
import { say } from "../ui/toasts";
import type { Asking, OpenConversation } from "./conversation";

export interface Choices {
  model: ReadonlySignal<string>;
  /** A second model that answers beside the first. */
  beside: Signal<string | null>;
  settings: ReadonlySignal<ChatSettings>;
  system: ReadonlySignal<string | null>;
  setModel: (name: string) => void;
  setSettings: (settings: ChatSettings) => void;
  setSystem: (system: string | null) => void;
}

export function asking(choices: Choices): Asking {
  const beside = choices.beside.peek();
  const model = choices.model.peek();
  const models = beside && beside !== model ? [model, beside] : [model];
  return { models: models.filter(Boolean), settings: choices.settings.peek() };
}

const newModel = signal<string | null>(null);
const newSettings = signal<ChatSettings | null>(null);
const newSystem = signal<string | null>(null);
const newBeside = signal<string | null>(null);

export const forNewChat: Choices = {
  model: computed(() => newModel.value ?? defaultModel.value),
  beside: newBeside,
  settings: computed(() => newSettings.value ?? { thinking: preferences.value.thinking ?? "auto" }),
  system: newSystem,
  setModel: (name) => {
    newModel.value = name;
    preferModel(name);
  },
  setSettings: (settings) => {
    newSettings.value = settings;
    prefer({ thinking: settings.thinking });
  },
  setSystem: (system) => {
    newSystem.value = system;
  },
};

/** The chat has begun; the next new one starts from the usual. */
export function forgetNewChat(): void {
  newModel.value = null;
  newSettings.value = null;
  newSystem.value = null;
  newBeside.value = null;
}

export function forChat(chat: OpenConversation, beside: string | null): Choices {
  return {
    model: computed(() => {
      const name = chat.item.value.model;
      const isThere =
        installed.value.length === 0 || installed.value.some((one) => one.name === name);
      return name && isThere ? name : defaultModel.value;
    }),
    beside: signal(beside),
    settings: chat.settings,
    system: chat.system,
    setModel: (name) => {
      preferModel(name);
      chat.change({ model: name }).catch(say);
    },
    setSettings: (settings) => {
      chat.change({ settings }).catch(say);
    },
    setSystem: (system) => {
      chat.change({ system }).catch(say);
    },
  };
}
