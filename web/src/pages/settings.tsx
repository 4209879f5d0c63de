// How the page looks and behaves, and what becomes of the data.

import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../api/client";
import { refresh } from "../conversations";
import { type Key, t } from "../i18n";
import { prefer, preferences } from "../preferences";
import { logOut, session } from "../session";
import { shortcutListOpen } from "../shell/state";
import { Icon } from "../ui/icons";
import { say, toast } from "../ui/toasts";
import { ActionButton, Confirm, PageFrame } from "./parts";

export default function SettingsPage() {
  const chosen = preferences.value;
  return (
    <PageFrame title={t("nav.settings")}>
      <Choice
        legend={t("settings.language")}
        name="language"
        value={chosen.language ?? ""}
        options={[
          ["", t("settings.language_system")],
          ["en", "English"],
          ["ko", "한국어"],
        ]}
        onPick={(value) => prefer({ language: value === "" ? undefined : (value as "en" | "ko") })}
      />
      <Choice
        legend={t("settings.theme")}
        name="theme"
        value={chosen.theme ?? "system"}
        options={(["system", "light", "dark"] as const).map((theme) => [
          theme,
          t(`settings.theme_${theme}` as Key),
        ])}
        onPick={(value) => prefer({ theme: value as "system" | "light" | "dark" })}
      />
      <section aria-label={t("settings.chat")}>
        <h2>{t("settings.chat")}</h2>
        <Switch
          label={t("settings.enter_sends")}
          hint={t("settings.enter_sends_hint")}
          on={chosen.enter_sends !== false}
          onChange={(on) => prefer({ enter_sends: on })}
        />
        <Switch
          label={t("settings.show_thinking")}
          hint={t("settings.show_thinking_hint")}
          on={chosen.show_thinking === true}
          onChange={(on) => prefer({ show_thinking: on })}
        />
        <button type="button" class="button" onClick={() => (shortcutListOpen.value = true)}>
          <Icon name="keyboard" />
          {t("nav.shortcuts")}
        </button>
      </section>
      <YourData />
      <Account />
    </PageFrame>
  );
}

function Choice({
  legend,
  name,
  value,
  options,
  onPick,
}: {
  legend: string;
  name: string;
  value: string;
  options: [string, string][];
  onPick: (value: string) => void;
}) {
  return (
    <fieldset class="choice">
      <legend>{legend}</legend>
      {options.map(([option, label]) => (
        <label key={option}>
          <input
            type="radio"
            name={name}
            value={option}
            checked={option === value}
            onChange={() => onPick(option)}
          />
          <span>{label}</span>
        </label>
      ))}
    </fieldset>
  );
}

function Switch({
  label,
  hint,
  on,
  onChange,
}: {
  label: string;
  hint: string;
  on: boolean;
  onChange: (on: boolean) => void;
}) {
  return (
    <label class="switch">
      <input
        type="checkbox"
        checked={on}
        onChange={(event) => onChange(event.currentTarget.checked)}
      />
      <span>
        {label}
        <span class="hint">{hint}</span>
      </span>
    </label>
  );
}

function YourData() {
  const [asks, setAsks] = useState(false);
  const file = useRef<HTMLInputElement>(null);
  const days = useRetention();
  const bring = async () => {
    const picked = file.current?.files?.[0];
    if (!picked) return;
    try {
      const { conversations, messages, skipped } = await api.importFile(picked);
      toast(t("settings.imported", { n: conversations, messages }));
      if (skipped.length > 0)
        toast(t("settings.import_skipped", { n: skipped.length, first: reason(skipped[0]!) }), {
          kind: "error",
          ms: 15_000,
        });
      await refresh();
    } finally {
      if (file.current) file.current.value = "";
    }
  };
  return (
    <section aria-label={t("settings.data")}>
      <h2>{t("settings.data")}</h2>
      <p class="quiet">
        {t("settings.data_where")}{" "}
        {days === null ? t("settings.kept_forever") : t("settings.kept_days", { n: days })}
      </p>
      <div class="button-row">
        <a class="button" href={api.exportAllUrl} download="mull.json">
          <Icon name="download" />
          {t("settings.export")}
        </a>
        <label class="button file-button">
          <Icon name="upload" />
          {t("settings.import")}
          <input
            ref={file}
            class="visually-hidden"
            type="file"
            accept=".json,.zip,application/json,application/zip"
            onChange={() => bring().catch(say)}
          />
        </label>
        <button type="button" class="button danger" onClick={() => setAsks(true)}>
          <Icon name="trash" />
          {t("settings.delete_all")}
        </button>
      </div>
      <p class="quiet">{t("settings.import_hint")}</p>
      {asks && (
        <Confirm
          title={t("settings.delete_all")}
          text={t("settings.delete_all_text")}
          action={t("settings.delete_all_yes")}
          run={() =>
            api.removeAllConversations().then(() => {
              toast(t("settings.deleted_all"));
              return refresh();
            })
          }
          onClose={() => setAsks(false)}
        />
      )}
    </section>
  );
}

/** Days the server keeps conversations; null: until they are deleted. */
function useRetention(): number | null {
  const [days, setDays] = useState<number | null>(null);
  useEffect(() => {
    const stop = new AbortController();
    api
      .status(stop.signal)
      .then(({ limits }) => {
        if (typeof limits.retention_days === "number") setDays(limits.retention_days);
      })
      .catch(() => {}); // the note then says what holds unless the operator changed it
    return () => stop.abort();
  }, []);
  return days;
}

function reason(skipped: { [key: string]: unknown }): string {
  const told = skipped.reason ?? skipped.why ?? skipped.error;
  return typeof told === "string" ? told : JSON.stringify(skipped);
}

function Account() {
  const here = session.value;
  if (!here) return null;
  return (
    <section aria-label={t("settings.account")}>
      <h2>{t("settings.account")}</h2>
      {here.accounts ? (
        <div class="button-row">
          <p>{t("settings.account_is", { name: here.owner ?? "" })}</p>
          <ActionButton run={logOut}>{t("login.out")}</ActionButton>
        </div>
      ) : (
        <p class="quiet">{t("settings.account_none")}</p>
      )}
      <p class="quiet">{t("settings.version", { version: here.version })}</p>
    </section>
  );
}
