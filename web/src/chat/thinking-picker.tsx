import type { Thinking } from "../api/types";
import { number, t } from "../i18n";
import { useShortcut } from "../keys";
import { modelNamed } from "../models";
import { Icon } from "../ui/icons";
import { Menu, type MenuItem } from "../ui/menu";
import type { Choices } from "./choices";

const EFFORTS = [
  { budget: 256, label: "think.short" },
  { budget: 1024, label: "think.medium" },
  { budget: 4096, label: "think.long" },
] as const;

/** Whether and how long it thinks before it answers. */
export function ThinkingPicker({ choices }: { choices: Choices }) {
  const settings = choices.settings.value;
  const mode = settings.thinking ?? "auto";
  const budget = settings.think_budget ?? null;
  const model = modelNamed(choices.model.value);
  const set = (thinking: Thinking, think_budget: number | null = budget) =>
    choices.setSettings({ ...settings, thinking, think_budget });
  useShortcut("think", () => set(mode === "auto" ? "on" : mode === "on" ? "off" : "auto"));
  const items = (): MenuItem[] => [
    {
      label: t("think.auto"),
      hint: t("think.auto_hint"),
      checked: mode === "auto",
      run: () => set("auto"),
    },
    { label: t("think.on"), checked: mode === "on", run: () => set("on") },
    { label: t("think.off"), checked: mode === "off", run: () => set("off") },
    { label: t("think.free"), apart: true, checked: budget === null, run: () => set(mode, null) },
    ...EFFORTS.map((effort) => ({
      label: t(effort.label),
      hint: t("facts.tokens", { n: effort.budget }),
      checked: budget === effort.budget,
      run: () => set(mode === "off" ? "on" : mode, effort.budget),
    })),
  ];
  const words = t(mode === "on" ? "think.on" : mode === "off" ? "think.off" : "think.auto");
  const limit = budget !== null && mode !== "off" ? ` · ${number(budget)}` : "";
  const heading = model?.thinks === false ? t("think.untrained") : undefined;
  return (
    <Menu
      label={`${t("think.label")}: ${words}${limit}`}
      items={items}
      class="chip"
      heading={heading}
    >
      <Icon name="thought" />
      <span class="chip-text">
        {words}
        {limit}
      </span>
      <Icon name="down" />
    </Menu>
  );
}
