// The server's objects as they cross the wire (docs/api.md, "The page's routes").

export interface Page<T> {
  items: T[];
  next: string | null;
}

export interface Session {
  owner: string | null;
  login_required: boolean;
  /** Whether models may be got, loaded and deleted. */
  admin?: boolean;
  version: string;
  default_model: string | null;
  accounts: boolean;
}

export type Thinking = "auto" | "on" | "off";

export interface Sampling {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  max_tokens?: number;
  seed?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
}

export interface ChatSettings {
  sampling?: Sampling;
  thinking?: Thinking;
  think_budget?: number | null;
}

export interface Preset extends ChatSettings {
  id: string;
  name: string;
  system: string | null;
}

export interface ConversationItem {
  id: string;
  title: string;
  pinned: boolean;
  folder: string | null;
  tags: string[];
  model: string | null;
  created: string;
  updated: string;
  message_count: number;
  running: boolean;
}

export interface Conversation extends ConversationItem {
  system: string | null;
  settings: ChatSettings;
  head: string | null;
  messages: Message[];
}

export interface AttachedFile {
  id: string;
  name: string;
  kind: string;
  characters: number;
  bytes?: number;
  pages?: number | null;
}

export interface Usage {
  prompt_tokens: number;
  cached_tokens: number;
  reasoning_tokens: number;
  completion_tokens: number;
}

export interface Timing {
  ttft_s: number | null;
  thinking_s: number | null;
  tokens_per_s: number | null;
  total_s: number | null;
}

export interface ToolCall {
  id?: string;
  name?: string;
  arguments?: unknown;
  function?: { name: string; arguments: string };
}

export type MessageState = "done" | "running" | "stopped" | "failed";

export interface Message {
  id: string;
  parent: string | null;
  role: "user" | "assistant";
  text: string;
  thinking: string;
  tool_calls: ToolCall[];
  files: AttachedFile[];
  model: string | null;
  state: MessageState;
  error: string | null;
  finish_reason: string | null;
  usage: Usage | null;
  timing: Timing | null;
  cost_usd: number | null;
  created: string;
  response_id: string | null;
  /** The answer it was asked for together with, to be compared. */
  beside: string | null;
}

export interface NewAnswer {
  parent: string;
  model?: string;
  thinking?: Thinking;
  think_budget?: number;
  sampling?: Sampling;
  continue?: true;
  beside?: string;
}

export interface SearchHit {
  conversation: string;
  title: string;
  message: string | null;
  snippet: string;
  ranges: [number, number][];
}

export interface Count {
  prompt_tokens: number;
  context: number;
  left: number;
  fits: boolean;
}

export interface Imported {
  conversations: number;
  messages: number;
  skipped: { [key: string]: unknown }[];
}

export interface Model {
  name: string;
  installed: boolean;
  loaded: boolean;
  default: boolean;
  thinks: boolean | null;
  size_bytes: number | null;
  parameters: number | null;
  active_parameters: number | null;
  licence: string | null;
  context: number | null;
  precision: string | null;
  fits: { ok: boolean; needs_bytes: number; available_bytes: number; why: string | null } | null;
  speed: {
    decode_tokens_per_s: number | null;
    prefill_tokens_per_s: number | null;
    measured: string | null;
  } | null;
  pull: {
    state: string;
    done_bytes: number;
    total_bytes: number | null;
    error: string | null;
  } | null;
  about: string | null;
}

export interface RunStage {
  name: string;
  kind: string;
  state: string;
  steps: number | null;
  step: number;
}

export interface Run {
  id: string;
  name: string;
  about: string | null;
  state: "running" | "done" | "stopped" | "failed";
  stage: string | null;
  stages: RunStage[];
  started: string | null;
  updated: string | null;
  bill: { seconds: number; joules: number | null; usd: number | null } | null;
  has_report: boolean;
}

export interface Rows {
  rows: { [key: string]: unknown }[];
  next: number;
  /** The run was set back: these are its rows from the first one on. */
  reset?: boolean;
}

export interface Status {
  uptime_s: number;
  version: string;
  requests: { running: number; queued: number; finished: number; failed: number };
  tokens_per_s: { decode: number; prefill: number };
  memory: { rss_bytes: number; available_bytes: number; total_bytes: number };
  cpu_percent: number;
  models: {
    name: string;
    precision: string;
    weights_bytes: number;
    cache: { used_tokens: number; total_tokens: number; hits: number };
    running: number;
    queued: number;
    idle_s: number;
  }[];
  limits: { [key: string]: unknown };
}

/** What the page keeps for its user (GET, PUT and PATCH /api/settings). */
export interface Settings {
  language?: "en" | "ko";
  theme?: "light" | "dark" | "system";
  enter_sends?: boolean;
  show_thinking?: boolean;
  /** The last choices, which new chats start with. */
  model?: string;
  thinking?: Thinking;
  [key: string]: unknown;
}
