// Which page is shown at which address. What a first visit does not need is loaded when it is opened.

import { type ComponentType, Fragment } from "preact";
import { useEffect, useErrorBoundary, useState } from "preact/hooks";
import { Chat, NewChat } from "./chat/chat";
import { t } from "./i18n";
import { Login } from "./pages/login";
import { route } from "./router";
import { offline, start } from "./session";
import { Shell } from "./shell/shell";
import { Toasts } from "./ui/toasts";

export function App() {
  const here = route.value;
  return (
    <Fragment>
      {here.name === "login" ? (
        <Login />
      ) : (
        <Shell>
          <Boundary key={here.name}>
            <Here />
          </Boundary>
        </Shell>
      )}
      <Toasts />
    </Fragment>
  );
}

const Models = lazily(() => import("./pages/models"));
const Runs = lazily(() => import("./pages/runs"));
const RunView = lazily(() => import("./pages/run"));
const Status = lazily(() => import("./pages/status"));
const Settings = lazily(() => import("./pages/settings"));

/** Once there is nothing else to do, so that these pages open at once, and without the server. */
export function loadAllPages(): void {
  for (const page of [Models, Runs, RunView, Status, Settings]) page.preload();
}

function Here() {
  const here = route.value;
  switch (here.name) {
    case "models":
      return <Models />;
    case "runs":
      return <Runs />;
    case "run":
      return <RunView key={here.id} id={here.id} />;
    case "status":
      return <Status />;
    case "settings":
      return <Settings />;
    case "unknown":
    case "login":
      return <Unknown />;
    case "chat":
      return <Chat id={here.id} />;
    case "new":
      return <NewChat />;
  }
}

function Unknown() {
  return (
    <main class="page" id="main">
      <div class="column">
        <h1>{t("error.unknown_page")}</h1>
        <p class="lede">{t("error.unknown_page_next")}</p>
        <a class="button primary" href="/">
          {t("nav.new")}
        </a>
      </div>
    </main>
  );
}

function Boundary({ children }: { children: preact.ComponentChildren }) {
  const [error] = useErrorBoundary();
  if (!error) return <Fragment>{children}</Fragment>;
  return (
    <main class="page" id="main">
      <div class="column">
        <h1>{t("error.crash")}</h1>
        <p class="lede" dir="auto">
          {error instanceof Error ? error.message : String(error)}
        </p>
        <button type="button" class="button primary" onClick={() => location.reload()}>
          {t("action.retry")}
        </button>
      </div>
    </main>
  );
}

/** A component in a chunk of its own. Without the server the shell says so, and it comes with it. */
function lazily<P extends object>(
  load: () => Promise<{ default: ComponentType<P> }>,
): ComponentType<P> & { preload: () => void } {
  let loaded: ComponentType<P> | null = null;
  const get = async () => {
    loaded ??= (await load()).default;
    return loaded;
  };
  function Lazy(props: P) {
    const [Part, show] = useState<ComponentType<P> | null>(() => loaded);
    const [error, fail] = useState<unknown>(null);
    useEffect(() => {
      if (Part) return;
      let forget = () => {};
      get().then(
        (part) => show(() => part),
        async (failure) => {
          await start();
          if (!offline.peek()) return fail(failure);
          // A browser remembers that a module could not be had; only a new page asks again.
          forget = offline.subscribe((away) => {
            if (!away) location.reload();
          });
        },
      );
      return () => forget();
    }, []);
    if (error) throw error;
    return Part ? <Part {...props} /> : <main class="page" id="main" aria-busy="true" />;
  }
  return Object.assign(Lazy, { preload: () => get().catch(() => {}) });
}
