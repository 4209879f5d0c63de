// What is asked of the server again and again while it is looked at: never twice at a time, not at all
// while the page is hidden, and at once when it is shown again.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";

export interface Polled<T> {
  data: T | null;
  error: Error | null;
  /** Ask now. */
  again: () => void;
}

const WHILE_FAILING_MS = 3000;

/** `everyMs` says when to ask next after an answer; null: not again until told to. */
export function usePolled<T>(
  load: (signal: AbortSignal) => Promise<T>,
  everyMs: (data: T) => number | null,
): Polled<T> {
  const [state, setState] = useState<{ data: T | null; error: Error | null }>({
    data: null,
    error: null,
  });
  const latest = useRef({ load, everyMs });
  latest.current = { load, everyMs };
  const ask = useRef(() => {});

  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let current: AbortController | null = null;
    let asksAtAll = true;

    const later = (ms: number | null) => {
      clearTimeout(timer);
      asksAtAll = ms !== null;
      if (ms !== null && !document.hidden) timer = setTimeout(run, ms);
    };
    const run = async () => {
      clearTimeout(timer);
      current?.abort();
      const mine = new AbortController();
      current = mine;
      try {
        const data = await latest.current.load(mine.signal);
        if (mine.signal.aborted) return;
        setState({ data, error: null });
        later(latest.current.everyMs(data));
      } catch (error) {
        if (mine.signal.aborted) return;
        const failure = error instanceof Error ? error : new Error(String(error));
        setState((before) => ({ data: before.data, error: failure }));
        later(WHILE_FAILING_MS);
      }
    };
    const onShown = () => {
      if (document.hidden) clearTimeout(timer);
      else if (asksAtAll) run();
    };

    ask.current = run;
    document.addEventListener("visibilitychange", onShown);
    run();
    return () => {
      document.removeEventListener("visibilitychange", onShown);
      clearTimeout(timer);
      current?.abort();
    };
  }, []);

  return { ...state, again: useCallback(() => ask.current(), []) };
}
