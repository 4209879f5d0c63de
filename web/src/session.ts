// Who is here, and whether the server answers at all.

import { signal } from "@preact/signals";
import { api, onUnauthorised } from "./api/client";
import type { Session } from "./api/types";
import { loadPreferences } from "./preferences";
import { navigate, route } from "./router";
import { say } from "./ui/toasts";

export const session = signal<Session | null>(null);
/** True while the server cannot be reached; the shell says so and keeps asking. */
export const offline = signal(false);

onUnauthorised.handler = () => {
  if (route.peek().name !== "login") navigate("/login", { replace: true });
};

let nextTry: ReturnType<typeof setTimeout>;

/** Asks who is here; while the server is away it goes on asking. */
export async function start(): Promise<void> {
  clearTimeout(nextTry);
  try {
    session.value = await api.session();
    offline.value = false;
  } catch {
    offline.value = true;
    nextTry = setTimeout(start, 1500);
    return;
  }
  if (session.value.login_required && !session.value.owner) {
    navigate("/login", { replace: true });
    return;
  }
  loadPreferences().catch(say);
}

export async function logIn(key: string): Promise<void> {
  session.value = await api.login(key);
  loadPreferences().catch(say);
  navigate("/", { replace: true });
}

/** Who comes next finds nothing here of who was: no draft, no settings. */
export async function logOut(): Promise<void> {
  await api.logout();
  session.value = null;
  try {
    for (const kept of [localStorage, sessionStorage])
      for (const name of Object.keys(kept)) if (name.startsWith("mull.")) kept.removeItem(name);
  } catch {
    // A browser that lets nothing be kept has kept nothing.
  }
  location.assign("/login");
}
