// Server-sent events over fetch: unlike EventSource it can tell "gone" from "not reachable", so a
// stream is picked up again after a lost connection or a restarted server, from the last event seen.

import { ApiError, errorOf } from "./client";
import { EventReader, type ServerEvent } from "./event-reader";

export interface Listener {
  onEvent: (event: ServerEvent) => void;
  /** The connection was lost (true) or stands again (false). */
  onWaiting?: (waiting: boolean) => void;
}

const SILENCE_MS = 45_000; // the server comments at least every 15 s
const LONGEST_WAIT_MS = 4_000;

/**
 * Listens until `isLast` says so of an event. Goes on after lost connections with ?after=N.
 * Throws ApiError when the server refuses (404: it has forgotten this stream) and AbortError.
 */
export async function listen(
  path: string,
  signal: AbortSignal,
  listener: Listener,
  isLast: (event: ServerEvent) => boolean,
): Promise<void> {
  let after = 0;
  let wait = 250;
  for (;;) {
    try {
      const ended = await readOnce(`${path}?after=${after}`, signal, (event) => {
        listener.onWaiting?.(false);
        wait = 250;
        after = Math.max(after, event.id);
        listener.onEvent(event);
        return isLast(event);
      });
      if (ended) return;
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof ApiError && error.status > 0 && error.status < 500) throw error;
    }
    listener.onWaiting?.(true);
    await pause(wait, signal);
    wait = Math.min(wait * 1.6, LONGEST_WAIT_MS);
  }
}

async function readOnce(
  path: string,
  signal: AbortSignal,
  onEvent: (event: ServerEvent) => boolean,
): Promise<boolean> {
  const silence = new AbortController();
  const response = await fetch(path, {
    headers: { Accept: "text/event-stream" },
    signal: AbortSignal.any([signal, silence.signal]),
  });
  if (!response.ok || !response.body) throw await errorOf(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const events = new EventReader();
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return false;
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      for (const event of events.push(value)) {
        if (onEvent(event)) return true;
      }
    }
  } finally {
    clearTimeout(timer);
    reader.cancel().catch(() => {});
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      window.removeEventListener("online", now);
      resolve();
    }, ms);
    const now = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
      resolve();
    };
    signal.addEventListener("abort", stop, { once: true });
    window.addEventListener("online", now, { once: true });
  });
}
