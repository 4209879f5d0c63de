import { useState } from "preact/hooks";
import { ApiError } from "../api/client";
import { t } from "../i18n";
import { logIn } from "../session";

export function Login() {
  const [key, setKey] = useState("");
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const submit = async (event: Event) => {
    event.preventDefault();
    if (!key.trim()) return;
    setBusy(true);
    setProblem("");
    try {
      await logIn(key.trim());
    } catch (error) {
      const wrong = error instanceof ApiError && (error.status === 401 || error.status === 403);
      setProblem(wrong ? t("login.wrong") : error instanceof Error ? error.message : String(error));
      setBusy(false);
    }
  };
  return (
    <main class="login" id="main">
      <form class="card login-card" onSubmit={submit}>
        <h1>{t("login.title")}</h1>
        <label class="field">
          <span class="label">{t("login.key")}</span>
          <input
            class="input"
            type="password"
            autocomplete="current-password"
            value={key}
            aria-describedby="login-hint"
            aria-invalid={problem !== ""}
            onInput={(event) => setKey(event.currentTarget.value)}
          />
          <span class="hint" id="login-hint">
            {t("login.hint")}
          </span>
        </label>
        {problem && (
          <p class="notice danger" role="alert">
            {problem}
          </p>
        )}
        <button type="submit" class="button primary" disabled={busy || !key.trim()}>
          {t("login.button")}
        </button>
      </form>
    </main>
  );
}
