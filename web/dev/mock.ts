// The page's routes out of memory, for work on the page without a model (npm run dev -- --mode mock).
// The first word of a question chooses the answer: hostile, long, fast, think, code, math, fail, cut.

import type { IncomingMessage, ServerResponse } from "node:http";
import type { Plugin } from "vite";
import { answerFor, type Script } from "./answers.ts";

interface Stored {
  item: Record<string, unknown>;
  messages: Record<string, unknown>[];
}

interface Stream {
  events: string[];
  waiting: Set<ServerResponse>;
  stop: boolean;
  answerNow: boolean;
}

const conversations = new Map<string, Stored>();
const streams = new Map<string, Stream>();
const files = new Map<string, Record<string, unknown>>();
const presets: Record<string, unknown>[] = [];
let settings: unknown = {};
let ids = 0;

export function mock(): Plugin {
  return {
    name: "mock-of-the-contract",
    configureServer(server) {
      seed(Number(process.env.MOCK_CONVERSATIONS ?? 24), Number(process.env.MOCK_MESSAGES ?? 4));
      server.middlewares.use((request, response, next) => {
        if (!request.url?.startsWith("/api/")) return next();
        handle(request, response).catch((error) => {
          send(response, 500, {
            error: { message: String(error), type: "server_error", param: null, code: null },
          });
        });
      });
    },
  };
}

async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const url = new URL(request.url ?? "/", "http://mock");
  const [, , first = "", id = "", rest = "", last = ""] = url.pathname
    .split("/")
    .map(decodeURIComponent);
  const method = request.method ?? "GET";
  const raw = await bodyOf(request);
  const body = () => JSON.parse(raw.toString() || "{}");
  const q = url.searchParams;
  const stored = conversations.get(id);

  if (first === "session") return send(response, 200, SESSION);
  if (first === "settings") {
    if (method === "PUT") settings = body();
    return send(response, 200, settings);
  }
  if (first === "models") return send(response, 200, { items: MODELS, next: null });
  if (first === "runs" && id === "") return send(response, 200, { items: [], next: null });
  if (first === "presets") {
    if (method === "POST") presets.push({ id: newId(), ...body() });
    if (method === "DELETE")
      presets.splice(
        presets.findIndex((one) => one.id === id),
        1,
      );
    return send(response, 200, method === "POST" ? presets.at(-1) : { items: presets, next: null });
  }
  if (first === "files" && method === "POST") {
    const name = /filename="([^"]*)"/.exec(raw.subarray(0, 600).toString())?.[1] ?? "file.txt";
    const file = { id: newId(), name, kind: "text", bytes: raw.length, characters: raw.length };
    files.set(file.id, file);
    return send(response, 200, file);
  }
  if (first === "files") return send(response, 204);
  if (first === "count") {
    const asked = body();
    const size = asked.files.reduce(
      (sum: number, one: string) => sum + Number(files.get(one)?.characters ?? 0),
      0,
    );
    const tokens = Math.ceil((asked.text.length + size) / 4) + 40;
    return send(response, 200, {
      prompt_tokens: tokens,
      context: 8192,
      left: 8192 - tokens,
      fits: tokens < 8192,
    });
  }
  if (first === "search") {
    const words = (q.get("q") ?? "").toLowerCase();
    const items = [...conversations.values()].flatMap(({ item, messages }) =>
      messages.flatMap((message) => {
        const text = String(message.text);
        const at = text.toLowerCase().indexOf(words);
        if (at < 0) return [];
        const from = Math.max(0, at - 30);
        const snippet = text.slice(from, at + 80);
        const ranges = [[at - from, at - from + words.length]];
        return [{ conversation: item.id, title: item.title, message: message.id, snippet, ranges }];
      }),
    );
    return send(response, 200, { items: items.slice(0, 50) });
  }
  if (first === "answers") {
    const stream = streams.get(id);
    if (!stream) return fail(response, 404, "this answer is forgotten");
    if (rest === "events") return listen(response, stream, Number(q.get("after") ?? 0));
    if (rest === "stop") stream.stop = true;
    if (rest === "answer-now") stream.answerNow = true;
    return send(response, 200, {});
  }
  if (first === "conversations" && id === "") {
    if (method === "POST") {
      const item = newItem({ title: "", ...body() });
      conversations.set(String(item.id), { item, messages: [] });
      return send(response, 200, { ...item, head: null, messages: [] });
    }
    const all = [...conversations.values()]
      .map(
        ({ item, messages }): Record<string, unknown> => ({
          ...item,
          message_count: messages.length,
        }),
      )
      .filter((item) => !q.get("folder") || item.folder === q.get("folder"))
      .filter((item) => !q.get("tag") || (item.tags as string[]).includes(q.get("tag")!))
      .sort(
        (a, b) =>
          Number(b.pinned) - Number(a.pinned) || String(b.updated).localeCompare(String(a.updated)),
      );
    const from = Number(q.get("cursor") ?? 0);
    const to = from + Number(q.get("limit") ?? 50);
    return send(response, 200, {
      items: all.slice(from, to),
      next: to < all.length ? String(to) : null,
    });
  }
  if (first === "conversations" && !stored)
    return fail(response, 404, "there is no such conversation");
  if (first === "conversations" && stored) {
    const { item, messages } = stored;
    if (rest === "" && method === "GET") return send(response, 200, { ...item, messages });
    if (rest === "" && method === "DELETE") {
      conversations.delete(id);
      return send(response, 204);
    }
    if (rest === "" && method === "PATCH") {
      Object.assign(item, body());
      return send(response, 200, { ...item, messages });
    }
    if (rest === "messages") {
      const asked = body();
      const attached = asked.files.map((one: string) => files.get(one)).filter(Boolean);
      const message = newMessage({ ...asked, role: "user", files: attached });
      messages.push(message);
      Object.assign(item, {
        head: message.id,
        title: item.title || asked.text.slice(0, 60),
        updated: now(),
      });
      return send(response, 200, message);
    }
    if (rest === "answers") return send(response, 200, answer(stored, body()));
  }
  return fail(response, 404, `the mock has no ${method} ${url.pathname} ${last}`);
}

function answer(stored: Stored, asked: Record<string, unknown>): unknown {
  const parent = stored.messages.find((one) => one.id === asked.parent)!;
  const continued = asked.continue === true;
  const script = answerFor(continued ? "continue" : String(parent.text), asked.thinking !== "off");
  const message = continued
    ? Object.assign(parent, { state: "running" })
    : newMessage({
        parent: asked.parent,
        role: "assistant",
        model: asked.model ?? "mock",
        state: "running",
        beside: asked.beside ?? null,
      });
  message.response_id = newId();
  if (!continued) stored.messages.push(message);
  if (!asked.beside) stored.item.head = message.id;
  const stream: Stream = { events: [], waiting: new Set(), stop: false, answerNow: false };
  streams.set(String(message.response_id), stream);
  play(message, stream, script);
  return { message: { ...message }, response_id: message.response_id };
}

/** Says the script at its speed: tokens are about four characters. */
async function play(
  message: Record<string, unknown>,
  stream: Stream,
  script: Script,
): Promise<void> {
  const began = Date.now();
  const step = 1000 / script.tokensPerSecond;
  let thinkingTokens = 0;
  let tokens = 0;
  await pause(script.delay ?? 250);
  const said = async (kind: "thinking" | "answer", field: "thinking" | "text", text: string) => {
    for (let at = 0; at < text.length && !stream.stop; at += 4) {
      if (kind === "thinking" && stream.answerNow) break;
      const piece = text.slice(at, at + 4);
      message[field] = String(message[field]) + piece;
      tokens += 1;
      if (kind === "thinking") thinkingTokens += 1;
      emit(stream, kind, { text: piece });
      if (tokens % 25 === 0)
        emit(stream, "progress", { thinking_tokens: thinkingTokens, completion_tokens: tokens });
      const due = began + tokens * step;
      if (due > Date.now()) await pause(due - Date.now());
    }
  };
  await said("thinking", "thinking", script.thinking);
  const thinkingSeconds = (Date.now() - began) / 1000;
  await said("answer", "text", script.text);
  const total = (Date.now() - began) / 1000;
  Object.assign(message, {
    state: script.error ? "failed" : stream.stop ? "stopped" : "done",
    error: script.error ?? null,
    finish_reason: script.cut ? "length" : "stop",
    usage: {
      prompt_tokens: 40,
      cached_tokens: 12,
      reasoning_tokens: thinkingTokens,
      completion_tokens: tokens,
    },
    timing: {
      ttft_s: 0.25,
      thinking_s: script.thinking ? thinkingSeconds : null,
      tokens_per_s: tokens / total,
      total_s: total,
    },
    cost_usd: tokens * 1.3e-7,
  });
  emit(stream, "end", { message });
}

function emit(stream: Stream, name: string, data: unknown): void {
  const event = `id: ${stream.events.length + 1}\nevent: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
  stream.events.push(event);
  for (const response of stream.waiting) response.write(event);
}

function listen(response: ServerResponse, stream: Stream, after: number): void {
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  response.write(stream.events.slice(after).join(""));
  stream.waiting.add(response);
  response.on("close", () => stream.waiting.delete(response));
}

function seed(count: number, messageCount: number): void {
  const titles = [
    "Why is the sky blue?",
    "파이썬으로 CSV 읽기",
    "Plan a week in Jeju",
    "Explain RoPE scaling",
    "مرحبا بالعالم",
  ];
  for (let index = 0; index < count; index += 1) {
    const updated = new Date(Date.now() - index * 7.3e6 * (1 + index / 9)).toISOString();
    const title = `${titles[index % titles.length]}${index >= titles.length ? ` ${index}` : ""}`;
    const item = newItem({ title, updated, pinned: index === 3 });
    if (index % 5 === 2) Object.assign(item, { folder: "Travel", tags: ["plans"] });
    const messages: Record<string, unknown>[] = [];
    for (let turn = 0; turn < messageCount / 2; turn += 1) {
      const question = newMessage({
        role: "user",
        text: turn === 0 ? title : `And then? (${turn})`,
        parent: messages.at(-1)?.id ?? null,
      });
      const script = answerFor(
        turn % 3 === 1 ? "code" : turn % 3 === 2 ? "math" : title,
        turn % 2 === 0,
      );
      const said = newMessage({
        role: "assistant",
        parent: question.id,
        model: "nano",
        text: script.text,
        thinking: script.thinking,
      });
      said.usage = {
        prompt_tokens: 40,
        cached_tokens: 0,
        reasoning_tokens: 64,
        completion_tokens: 180,
      };
      said.timing = { ttft_s: 0.3, thinking_s: 2.1, tokens_per_s: 41.2, total_s: 6.2 };
      messages.push(question, said);
    }
    item.head = messages.at(-1)?.id ?? null;
    conversations.set(String(item.id), { item, messages });
  }
}

function newItem(fields: Record<string, unknown>): Record<string, unknown> {
  return {
    ...{
      id: newId(),
      pinned: false,
      folder: null,
      tags: [],
      model: "smollm2-135m",
      created: now(),
      updated: now(),
    },
    ...{ running: false, system: null, settings: {}, head: null },
    ...fields,
  };
}

function newMessage(fields: Record<string, unknown>): Record<string, unknown> {
  return {
    ...{
      id: newId(),
      parent: null,
      role: "user",
      text: "",
      thinking: "",
      tool_calls: [],
      files: [],
      model: null,
    },
    ...{
      state: "done",
      error: null,
      finish_reason: null,
      usage: null,
      timing: null,
      cost_usd: null,
      created: now(),
    },
    response_id: null,
    beside: null,
    ...fields,
  };
}

const SESSION = {
  owner: "local",
  login_required: false,
  version: "0.1.0",
  default_model: "smollm2-135m",
  accounts: false,
};
const MODELS = [
  {
    name: "smollm2-135m",
    installed: true,
    loaded: true,
    default: true,
    thinks: false,
    context: 8192,
  },
  { name: "nano", installed: true, loaded: false, default: false, thinks: true, context: 2048 },
].map((model) => ({
  precision: "q8",
  size_bytes: 1e8,
  parameters: 1.35e8,
  licence: "Apache-2.0",
  pull: null,
  speed: null,
  fits: null,
  about: null,
  active_parameters: null,
  ...model,
}));

function newId(): string {
  ids += 1;
  return `m${ids.toString(36)}`;
}

function now(): string {
  return new Date().toISOString();
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part as Buffer);
  return Buffer.concat(parts);
}

function send(response: ServerResponse, status: number, body?: unknown): void {
  response.writeHead(status, { "Content-Type": "application/json" });
  response.end(body === undefined ? undefined : JSON.stringify(body));
}

function fail(response: ServerResponse, status: number, message: string): void {
  send(response, status, {
    error: { message, type: "invalid_request_error", param: null, code: null },
  });
}
