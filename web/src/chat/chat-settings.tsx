// The settings of one chat: what the model is told first, how it thinks, how it draws its words; and
// presets, to use the same again.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { api } from "../api/client";
import type { ChatSettings, Preset, Sampling, Thinking } from "../api/types";
import type { Key } from "../i18n";
import { t } from "../i18n";
import { Dialog } from "../ui/dialog";
import { IconButton } from "../ui/icon-button";
import { say, toast } from "../ui/toasts";
import type { Choices } from "./choices";

interface Field {
  name: keyof Sampling;
  label: Key;
  hint: Key;
  min: number;
  max: number;
  step: number;
  usual: string;
}

const FIELDS: Field[] = [
  {
    name: "temperature",
    label: "sampling.temperature",
    hint: "sampling.temperature_hint",
    min: 0,
    max: 2,
    step: 0.1,
    usual: "0.6",
  },
  {
    name: "top_p",
    label: "sampling.top_p",
    hint: "sampling.top_p_hint",
    min: 0.01,
    max: 1,
    step: 0.01,
    usual: "0.95",
  },
  {
    name: "top_k",
    label: "sampling.top_k",
    hint: "sampling.top_k_hint",
    min: 0,
    max: 1000,
    step: 1,
    usual: "0",
  },
  {
    name: "min_p",
    label: "sampling.min_p",
    hint: "sampling.min_p_hint",
    min: 0,
    max: 1,
    step: 0.01,
    usual: "0",
  },
  {
    name: "max_tokens",
    label: "sampling.max_tokens",
    hint: "sampling.max_tokens_hint",
    min: 1,
    max: 1_000_000,
    step: 1,
    usual: "",
  },
  {
    name: "seed",
    label: "sampling.seed",
    hint: "sampling.seed_hint",
    min: 0,
    max: 2 ** 31 - 1,
    step: 1,
    usual: "",
  },
  {
    name: "presence_penalty",
    label: "sampling.presence",
    hint: "sampling.presence_hint",
    min: -2,
    max: 2,
    step: 0.1,
    usual: "0",
  },
  {
    name: "frequency_penalty",
    label: "sampling.frequency",
    hint: "sampling.frequency_hint",
    min: -2,
    max: 2,
    step: 0.1,
    usual: "0",
  },
];

export function ChatSettingsDialog({
  choices,
  onClose,
}: {
  choices: Choices;
  onClose: () => void;
}) {
  const system = useSignal(choices.system.peek() ?? "");
  const settings = useSignal<ChatSettings>(choices.settings.peek());
  const sampling = settings.value.sampling ?? {};
  const set = (change: ChatSettings) => {
    settings.value = { ...settings.peek(), ...change };
  };
  const save = (event: Event) => {
    event.preventDefault();
    const words = system.peek().trim() || null;
    if (words !== choices.system.peek()) choices.setSystem(words);
    if (settings.peek() !== choices.settings.peek()) choices.setSettings(settings.peek());
    onClose();
  };
  return (
    <Dialog title={t("chatset.title")} onClose={onClose} wide>
      <form class="stack" onSubmit={save}>
        <Presets
          current={() => ({ system: system.peek().trim() || null, ...settings.peek() })}
          onUse={(preset) => {
            system.value = preset.system ?? "";
            settings.value = {
              sampling: preset.sampling ?? {},
              thinking: preset.thinking ?? "auto",
              think_budget: preset.think_budget ?? null,
            };
          }}
        />
        <label class="field">
          <span class="label">{t("chatset.system")}</span>
          <textarea
            class="input"
            dir="auto"
            rows={4}
            placeholder={t("chatset.system_example")}
            value={system.value}
            onInput={(event) => {
              system.value = event.currentTarget.value;
            }}
          />
          <span class="hint">{t("chatset.system_hint")}</span>
        </label>
        <div class="grid">
          <label class="field">
            <span class="label">{t("think.label")}</span>
            <select
              class="input"
              value={settings.value.thinking ?? "auto"}
              onChange={(event) => set({ thinking: event.currentTarget.value as Thinking })}
            >
              <option value="auto">{t("think.auto")}</option>
              <option value="on">{t("think.on")}</option>
              <option value="off">{t("think.off")}</option>
            </select>
          </label>
          <NumberField
            label={t("chatset.budget")}
            hint={t("chatset.budget_hint")}
            min={1}
            max={1_000_000}
            step={1}
            usual={t("think.free")}
            value={settings.value.think_budget ?? undefined}
            onChange={(value) => set({ think_budget: value ?? null })}
          />
        </div>
        <details class="more" open={Object.keys(sampling).length > 0}>
          <summary>{t("chatset.sampling")}</summary>
          <div class="grid">
            {FIELDS.map((field) => (
              <NumberField
                key={field.name}
                label={t(field.label)}
                hint={t(field.hint)}
                min={field.min}
                max={field.max}
                step={field.step}
                usual={field.usual}
                value={sampling[field.name]}
                onChange={(value) => {
                  const next = { ...sampling };
                  if (value === undefined) delete next[field.name];
                  else next[field.name] = value;
                  set({ sampling: next });
                }}
              />
            ))}
          </div>
        </details>
        <div class="row end">
          <button type="button" class="button quiet" onClick={onClose}>
            {t("action.cancel")}
          </button>
          <button type="submit" class="button primary">
            {t("action.save")}
          </button>
        </div>
      </form>
    </Dialog>
  );
}

interface NumberProps {
  label: string;
  hint: string;
  min: number;
  max: number;
  step: number;
  usual: string;
  value: number | undefined;
  onChange: (value: number | undefined) => void;
}

/** Empty means: as the model's makers and the server would have it. */
function NumberField({ label, hint, min, max, step, usual, value, onChange }: NumberProps) {
  return (
    <label class="field">
      <span class="label">{label}</span>
      <input
        class="input"
        type="number"
        inputMode="decimal"
        min={min}
        max={max}
        step={step === 1 ? 1 : "any"}
        placeholder={usual}
        value={value ?? ""}
        onInput={(event) => {
          const text = event.currentTarget.value;
          const number = Number(text);
          if (text === "") onChange(undefined);
          else if (Number.isFinite(number)) onChange(number);
        }}
      />
      <span class="hint">{hint}</span>
    </label>
  );
}

function Presets({
  current,
  onUse,
}: {
  current: () => Omit<Preset, "id" | "name">;
  onUse: (preset: Preset) => void;
}) {
  const presets = useSignal<Preset[]>([]);
  const naming = useSignal(false);
  const name = useSignal("");
  useEffect(() => {
    api.presets().then((page) => {
      presets.value = page.items;
    }, say);
  }, []);
  const add = () => {
    const wanted = name.peek().trim();
    if (!wanted) return;
    const { system, sampling, thinking, think_budget } = current();
    api
      .addPreset({
        name: wanted,
        system,
        sampling: sampling ?? {},
        thinking: thinking ?? "auto",
        think_budget: think_budget ?? null,
      })
      .then((preset) => {
        presets.value = [...presets.peek(), preset];
        naming.value = false;
        name.value = "";
      }, say);
  };
  const remove = (preset: Preset) => {
    api.removePreset(preset.id).then(() => {
      presets.value = presets.peek().filter((other) => other.id !== preset.id);
      toast(t("preset.removed", { name: preset.name }));
    }, say);
  };
  return (
    <fieldset class="presets">
      <legend>{t("preset.title")}</legend>
      {presets.value.map((preset) => (
        <span class="preset" key={preset.id}>
          <button type="button" class="chip" onClick={() => onUse(preset)}>
            <bdi class="chip-text">{preset.name}</bdi>
          </button>
          <IconButton
            icon="close"
            label={t("preset.remove", { name: preset.name })}
            onClick={() => remove(preset)}
          />
        </span>
      ))}
      {naming.value ? (
        <span class="preset naming">
          <input
            class="input"
            dir="auto"
            maxLength={80}
            aria-label={t("preset.name")}
            placeholder={t("preset.name")}
            value={name.value}
            autofocus
            onInput={(event) => {
              name.value = event.currentTarget.value;
            }}
            onKeyDown={(event) => {
              if (event.key !== "Enter" || event.isComposing) return;
              event.preventDefault();
              add();
            }}
          />
          <button type="button" class="button" onClick={add}>
            {t("action.save")}
          </button>
        </span>
      ) : (
        <button
          type="button"
          class="fold"
          onClick={() => {
            naming.value = true;
          }}
        >
          {t("preset.add")}
        </button>
      )}
    </fieldset>
  );
}
