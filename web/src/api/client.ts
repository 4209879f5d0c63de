// Every request of the page: same origin, JSON, and one kind of error with words for a person.

import { t } from "../i18n";
import type {
  AttachedFile,
  ChatSettings,
  Conversation,
  ConversationItem,
  Count,
  Imported,
  Message,
  Model,
  NewAnswer,
  Page,
  Preset,
  Rows,
  Run,
  SearchHit,
  Session,
  Settings,
  Status,
} from "./types";

/** A refusal or a failure. `status` is 0 where no server answered. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly type = "",
    readonly param: string | null = null,
    readonly code: string | null = null,
  ) {
    super(message);
  }

  get isOffline(): boolean {
    return this.status === 0;
  }
}

/** Called when a request was refused for want of a login; the router goes to /login. */
export const onUnauthorised: { handler: () => void } = { handler: () => {} };

interface Options {
  method?: string;
  body?: unknown;
  form?: FormData;
  signal?: AbortSignal;
  keepalive?: boolean;
}

export async function send(path: string, options: Options = {}): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json" };
  let body: BodyInit | undefined = options.form;
  if (options.body !== undefined) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(options.body);
  }
  let response: Response;
  try {
    response = await fetch(path, {
      method: options.method ?? (body === undefined ? "GET" : "POST"),
      headers,
      body,
      signal: options.signal,
      keepalive: options.keepalive,
      credentials: "same-origin",
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, t("error.offline"));
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

export async function errorOf(response: Response): Promise<ApiError> {
  let message = "";
  let type = "";
  let param: string | null = null;
  let code: string | null = null;
  try {
    const { error } = await response.json();
    message = String(error.message ?? "");
    type = String(error.type ?? "");
    param = error.param ?? null;
    code = error.code === null || error.code === undefined ? null : String(error.code);
  } catch {
    // Not our form: a proxy's page, or a connection cut short.
  }
  if (response.status === 401) onUnauthorised.handler();
  return new ApiError(response.status, message || wordsFor(response.status), type, param, code);
}

function wordsFor(status: number): string {
  if (status === 401) return t("error.login");
  if (status === 404) return t("error.gone");
  if (status === 413) return t("error.too_large");
  if (status === 429) return t("error.busy");
  return t("error.server", { status });
}

async function json<T>(path: string, options: Options = {}): Promise<T> {
  return (await send(path, options)).json() as Promise<T>;
}

function query(values: Record<string, string | number | null | undefined>): string {
  const pairs = Object.entries(values).filter(([, v]) => v !== null && v !== undefined && v !== "");
  if (pairs.length === 0) return "";
  return `?${new URLSearchParams(pairs.map(([k, v]) => [k, String(v)]))}`;
}

const seg = encodeURIComponent;

export interface ListQuery {
  q?: string;
  folder?: string | null;
  tag?: string | null;
  cursor?: string | null;
  limit?: number;
}

export type ConversationPatch = Partial<
  Pick<
    Conversation,
    "title" | "pinned" | "folder" | "tags" | "head" | "system" | "settings" | "model"
  >
>;

export interface NewConversation {
  title?: string;
  model?: string;
  system?: string | null;
  settings?: ChatSettings;
  folder?: string | null;
  tags?: string[];
}

export interface CountQuery {
  model: string;
  conversation?: string;
  parent?: string | null;
  text: string;
  files: string[];
  system?: string | null;
}

export const api = {
  session: (signal?: AbortSignal) => json<Session>("/api/session", { signal }),
  login: (key: string) => json<Session>("/api/login", { body: { key } }),
  logout: () => send("/api/logout", { method: "POST" }),

  settings: () => json<Settings>("/api/settings"),
  /** null: no longer set. Also arrives when the page goes away meanwhile. */
  changeSettings: (change: { [name: string]: unknown }) =>
    send("/api/settings", { method: "PATCH", body: change, keepalive: true }),

  presets: () => json<Page<Preset>>("/api/presets"),
  addPreset: (preset: Omit<Preset, "id">) => json<Preset>("/api/presets", { body: preset }),
  changePreset: (id: string, change: Partial<Preset>) =>
    json<Preset>(`/api/presets/${seg(id)}`, { method: "PATCH", body: change }),
  removePreset: (id: string) => send(`/api/presets/${seg(id)}`, { method: "DELETE" }),

  conversations: (list: ListQuery = {}, signal?: AbortSignal) =>
    json<Page<ConversationItem>>(`/api/conversations${query({ ...list })}`, { signal }),
  conversation: (id: string, signal?: AbortSignal) =>
    json<Conversation>(`/api/conversations/${seg(id)}`, { signal }),
  addConversation: (fields: NewConversation) =>
    json<Conversation>("/api/conversations", { body: fields }),
  /** Arrives though the page is left meanwhile; a long system prompt is more than browsers let so. */
  changeConversation: (id: string, change: ConversationPatch) =>
    json<Conversation>(`/api/conversations/${seg(id)}`, {
      method: "PATCH",
      body: change,
      keepalive: change.system === undefined,
    }),
  removeConversation: (id: string, keepalive = false) =>
    send(`/api/conversations/${seg(id)}`, { method: "DELETE", keepalive }),
  removeAllConversations: () => send("/api/conversations", { method: "DELETE" }),
  addMessage: (id: string, message: { parent: string | null; text: string; files: string[] }) =>
    json<Message>(`/api/conversations/${seg(id)}/messages`, { body: message }),
  addAnswer: (id: string, answer: NewAnswer) =>
    json<{ message: Message; response_id: string }>(`/api/conversations/${seg(id)}/answers`, {
      body: answer,
    }),
  stop: (response: string) => send(`/api/answers/${seg(response)}/stop`, { method: "POST" }),
  answerNow: (response: string) =>
    send(`/api/answers/${seg(response)}/answer-now`, { method: "POST" }),

  search: (q: string, limit: number, signal?: AbortSignal) =>
    json<{ items: SearchHit[] }>(`/api/search${query({ q, limit })}`, { signal }),
  exportUrl: (id: string, format: "markdown" | "json") =>
    `/api/conversations/${seg(id)}/export?format=${format}`,
  exportAllUrl: "/api/export",
  importFile: (file: File) => json<Imported>("/api/import", { form: formOf(file) }),

  addFile: (file: File, signal?: AbortSignal) =>
    json<AttachedFile>("/api/files", { form: formOf(file), signal }),
  file: (id: string) => json<AttachedFile & { text: string }>(`/api/files/${seg(id)}`),
  removeFile: (id: string) => send(`/api/files/${seg(id)}`, { method: "DELETE" }),
  count: (what: CountQuery, signal?: AbortSignal) =>
    json<Count>("/api/count", { body: what, signal }),

  models: (signal?: AbortSignal) => json<Page<Model>>("/api/models", { signal }),
  pull: (name: string) => send(`/api/models/${seg(name)}/pull`, { method: "POST" }),
  pullEventsUrl: (name: string) => `/api/models/${seg(name)}/pull/events`,
  cancelPull: (name: string) => send(`/api/models/${seg(name)}/pull/cancel`, { method: "POST" }),
  removeModel: (name: string) => send(`/api/models/${seg(name)}`, { method: "DELETE" }),
  loadModel: (name: string) => send(`/api/models/${seg(name)}/load`, { method: "POST" }),
  unloadModel: (name: string) => send(`/api/models/${seg(name)}/unload`, { method: "POST" }),
  measureModel: (name: string) => send(`/api/models/${seg(name)}/measure`, { method: "POST" }),

  runs: (signal?: AbortSignal) => json<Page<Run>>("/api/runs", { signal }),
  run: (id: string, signal?: AbortSignal) => json<Run>(`/api/runs/${seg(id)}`, { signal }),
  runMetrics: (id: string, after: number, signal?: AbortSignal) =>
    json<Rows>(`/api/runs/${seg(id)}/metrics${query({ after })}`, { signal }),
  runSamples: (id: string, after: number, signal?: AbortSignal) =>
    json<Rows>(`/api/runs/${seg(id)}/samples${query({ after })}`, { signal }),
  runReportUrl: (id: string) => `/api/runs/${seg(id)}/report`,

  status: (signal?: AbortSignal) => json<Status>("/api/status", { signal }),
};

function formOf(file: File): FormData {
  const form = new FormData();
  form.append("file", file, file.name);
  return form;
}
