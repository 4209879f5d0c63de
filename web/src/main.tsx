import "./styles/tokens.css";
import "./styles/base.css";
import "./styles/shell.css";
import "./styles/controls.css";
import "./styles/chat.css";
import "./styles/prose.css";
import { render } from "preact";
import { App, loadAllPages } from "./app";
import { start } from "./session";

render(<App />, document.getElementById("app")!);
start();
const whenIdle = window.requestIdleCallback ?? ((run: () => void) => setTimeout(run, 2000));
whenIdle(loadAllPages);

if (import.meta.env.PROD && "serviceWorker" in navigator) {
  // Without it the page works all the same; it only opens without a server less gracefully.
  navigator.serviceWorker.register("/sw.js").catch(() => {});
}
