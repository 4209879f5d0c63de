// How much of the model's context the question would take, asked of the server a moment after typing.

import { signal } from "@preact/signals";
import { api, type CountQuery } from "../api/client";
import type { Count } from "../api/types";

const PAUSE_MS = 450;

export class Meter {
  readonly count = signal<Count | null>(null);
  private timer: ReturnType<typeof setTimeout> | undefined;
  private abort: AbortController | null = null;

  /** `what` is read when the pause is over. */
  ask(what: () => CountQuery | null): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(async () => {
      const wanted = what();
      this.abort?.abort();
      if (!wanted) {
        this.count.value = null;
        return;
      }
      const abort = new AbortController();
      this.abort = abort;
      try {
        this.count.value = await api.count(wanted, abort.signal);
      } catch {
        // No figure is better than a wrong one; the server checks again when the question is sent.
        if (!abort.signal.aborted) this.count.value = null;
      }
    }, PAUSE_MS);
  }

  stop(): void {
    clearTimeout(this.timer);
    this.abort?.abort();
  }
}
