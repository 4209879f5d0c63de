// An empty chat: where one writes, and three questions that the installed model can really answer.

import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";
import { language, t } from "../i18n";
import { installed, loadModels, modelNamed, modelsLoaded } from "../models";
import { session } from "../session";
import { forNewChat } from "./choices";
import { suggested } from "./composer";
import { suggestionsFor } from "./suggestions";

export function Welcome({ children }: { children: ComponentChildren }) {
  useEffect(() => {
    if (session.value) loadModels();
  }, [session.value]);
  const name = forNewChat.model.value;
  const suggestions = suggestionsFor(name, modelNamed(name));
  const none = modelsLoaded.value && installed.value.length === 0;
  return (
    <div class="welcome">
      <div class="welcome-words">
        <h1>{t("welcome.title")}</h1>
        <p>{t("welcome.private")}</p>
      </div>
      {none && (
        <div class="notice warning">
          <p>
            {t("welcome.no_model")} <a href="/models">{t("welcome.get_model")}</a>
          </p>
        </div>
      )}
      {children}
      {!none && suggestions.length > 0 && (
        <ul class="suggestions" aria-label={t("welcome.try")}>
          {suggestions.map((one) => (
            <li key={one.ask}>
              <button
                type="button"
                onClick={() => {
                  suggested.value = one.ask;
                }}
              >
                <span lang="en" dir="auto">
                  {one.ask}
                </span>
                {language.value === "ko" && <small>{one.ko}</small>}
              </button>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}
