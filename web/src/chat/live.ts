// An answer while it is being made: events from the server, gathered and shown once per frame.

import { type Signal, signal } from "@preact/signals";
import { ApiError } from "../api/client";
import type { ServerEvent } from "../api/event-reader";
import { listen } from "../api/events";
import type { Message, ToolCall } from "../api/types";
import { drawing } from "../markdown/markdown";

export interface Progress {
  thinking_tokens: number;
  completion_tokens: number;
  queue_position: number | null;
}

interface Outcome {
  /** The finished message, as the server keeps it. */
  onEnd: (message: Message) => void;
  /** The server does not know this answer any more (it was restarted): ask for the message. */
  onForgotten: () => void;
  onWaiting: (waiting: boolean) => void;
}

export class LiveAnswer {
  readonly progress = signal<Progress>({
    thinking_tokens: 0,
    completion_tokens: 0,
    queue_position: null,
  });
  readonly waiting = signal(false);
  readonly startedAt = performance.now();
  /** When the thinking began and ended, in performance.now() milliseconds. */
  readonly thinkingSince = signal<number | null>(null);
  readonly thinkingUntil = signal<number | null>(null);
  private readonly abort = new AbortController();
  private thinking = "";
  private text = "";
  private toolCalls: ToolCall[] = [];
  private scheduled = 0;

  constructor(
    readonly responseId: string,
    private readonly message: Signal<Message>,
    private readonly outcome: Outcome,
  ) {}

  async run(): Promise<void> {
    let ended = false;
    try {
      await listen(
        `/api/answers/${encodeURIComponent(this.responseId)}/events`,
        this.abort.signal,
        {
          onEvent: (event) => this.take(event),
          onWaiting: (waiting) => {
            if (this.waiting.peek() === waiting) return;
            this.waiting.value = waiting;
            this.outcome.onWaiting(waiting);
          },
        },
        (event) => {
          ended = event.name === "end" || event.name === "error";
          return ended;
        },
      );
    } catch (error) {
      if (this.abort.signal.aborted) return;
      this.outcome.onWaiting(false);
      if (error instanceof ApiError && error.status === 401) return;
      this.outcome.onForgotten();
    }
  }

  /** Stops listening; the answer itself goes on at the server. */
  leave(): void {
    this.abort.abort();
    this.unschedule();
  }

  private take(event: ServerEvent): void {
    let data: Record<string, unknown>;
    try {
      data = JSON.parse(event.data);
    } catch {
      return;
    }
    switch (event.name) {
      case "before": // what an answer had that is gone on with
        this.thinking = String(data.thinking ?? "");
        this.text = String(data.text ?? "");
        this.toolCalls = Array.isArray(data.tool_calls) ? data.tool_calls : [];
        break;
      case "thinking":
        this.thinkingSince.value ??= performance.now();
        this.thinking += String(data.text ?? "");
        this.schedule();
        break;
      case "answer":
        if (this.thinkingSince.peek() !== null) this.thinkingUntil.value ??= performance.now();
        this.text += String(data.text ?? "");
        this.schedule();
        break;
      case "tool_call":
        this.toolCalls = [...this.toolCalls, data as ToolCall];
        this.schedule();
        break;
      case "progress":
        this.progress.value = {
          thinking_tokens: Number(data.thinking_tokens ?? 0),
          completion_tokens: Number(data.completion_tokens ?? 0),
          queue_position: typeof data.queue_position === "number" ? data.queue_position : null,
        };
        break;
      case "end":
        this.unschedule();
        this.outcome.onEnd(data.message as Message);
        break;
      case "error": {
        this.unschedule();
        const error = data.error as { message?: string } | undefined;
        const shown = { ...this.message.peek(), thinking: this.thinking, text: this.text };
        const kept = data.message as Message | null | undefined;
        this.outcome.onEnd(kept ?? { ...shown, state: "failed", error: error?.message ?? "" });
      }
    }
  }

  /** Shows what has come at the next frame; later, where drawing takes long, so that typing never waits. */
  private schedule(): void {
    if (this.scheduled) return;
    const busy = drawing.ms > 8 ? Math.min(drawing.ms * 4, 1000) : 0;
    if (document.hidden || busy > 0) {
      this.scheduled = window.setTimeout(
        () => this.show(),
        Math.max(busy, document.hidden ? 500 : 0),
      );
    } else {
      this.scheduled = requestAnimationFrame(() => this.show());
    }
  }

  private unschedule(): void {
    clearTimeout(this.scheduled);
    cancelAnimationFrame(this.scheduled);
    this.scheduled = 0;
  }

  private show(): void {
    this.scheduled = 0;
    this.message.value = {
      ...this.message.peek(),
      thinking: this.thinking,
      text: this.text,
      tool_calls: this.toolCalls,
    };
  }
}
