import type { ButtonHTMLAttributes, ComponentChildren } from "preact";
import { Icon, type IconName } from "./icons";

type Rest = Omit<ButtonHTMLAttributes<HTMLButtonElement>, "icon" | "label" | "class">;

/** A button whose label is told by a tooltip and to screen readers. */
export function IconButton({
  icon,
  label,
  children,
  class: extra,
  ...rest
}: Rest & {
  icon: IconName;
  label: string;
  class?: string;
  disabled?: boolean;
  children?: ComponentChildren;
}) {
  return (
    <button
      type="button"
      class={`icon-button ${extra ?? ""}`}
      aria-label={label}
      title={label}
      {...rest}
    >
      <Icon name={icon} />
      {children}
    </button>
  );
}
