import { t } from "../i18n";
import { installed, loadModels } from "../models";
import { navigate } from "../router";
import { Icon } from "../ui/icons";
import { Menu, type MenuItem } from "../ui/menu";
import type { Choices } from "./choices";

/** Which model answers; and a second one, to see both side by side. */
export function ModelPicker({ choices }: { choices: Choices }) {
  const model = choices.model.value;
  const beside = choices.beside.value;
  const items = (): MenuItem[] => [
    ...installed.value.map((one) => ({
      label: one.name,
      hint: one.thinks ? t("model.thinks") : undefined,
      checked: one.name === model,
      run: () => {
        choices.setModel(one.name);
        if (beside === one.name) choices.beside.value = null;
      },
    })),
    { label: t("model.more"), icon: "cube", apart: true, run: () => navigate("/models") },
  ];
  const others = (): MenuItem[] => [
    ...installed.value
      .filter((one) => one.name !== model)
      .map((one) => ({
        label: one.name,
        hint: one.thinks ? t("model.thinks") : undefined,
        checked: one.name === beside,
        run: () => {
          choices.beside.value = one.name;
        },
      })),
    beside
      ? {
          label: t("model.no_compare"),
          icon: "close" as const,
          apart: true,
          run: () => {
            choices.beside.value = null;
          },
        }
      : {
          label: t("model.more"),
          icon: "cube" as const,
          apart: true,
          run: () => navigate("/models"),
        },
  ];
  return (
    <>
      <Menu
        label={t("model.choose", { model: model || "–" })}
        items={items}
        class="chip"
        onOpen={loadModels}
      >
        <bdi class="chip-text">{model || t("model.none")}</bdi>
        <Icon name="down" />
      </Menu>
      <Menu
        label={beside ? t("model.compared", { model: beside }) : t("model.compare")}
        items={others}
        class={beside ? "chip beside" : "icon-button"}
        iconOnly
        heading={t("model.compare")}
        onOpen={loadModels}
      >
        <Icon name="columns" />
        {beside && <bdi class="chip-text">{beside}</bdi>}
      </Menu>
    </>
  );
}
