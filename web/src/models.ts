// The installed models, and the one that answers where a conversation names none.

import { computed, signal } from "@preact/signals";
import { api } from "./api/client";
import type { Model } from "./api/types";
import { prefer, preferences } from "./preferences";
import { session } from "./session";

export const models = signal<Model[]>([]);
export const modelsLoaded = signal(false);

export const installed = computed(() => models.value.filter((model) => model.installed));

export async function loadModels(): Promise<void> {
  try {
    models.value = (await api.models()).items;
    modelsLoaded.value = true;
  } catch {
    // The shell says that the server is away; the next opening of the menu asks again.
  }
}

/** What a new chat talks to: the last choice while it is installed, else the server's default. */
export const defaultModel = computed(() => {
  const last = preferences.value.model;
  if (typeof last === "string" && installed.value.some((model) => model.name === last)) return last;
  const chosen = installed.value.find((model) => model.default) ?? installed.value[0];
  return session.value?.default_model ?? chosen?.name ?? "";
});

export function preferModel(name: string): void {
  prefer({ model: name });
}

export function modelNamed(name: string | null): Model | undefined {
  return models.value.find((model) => model.name === name);
}
