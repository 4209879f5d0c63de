// A button that opens a menu. The browser's popover gives the top layer, Escape and the click outside;
// arrows, Home, End and letters move as in any menu. It is opened in the same turn as it is drawn, so that
// a key pressed at once already finds it.

import type { ComponentChildren } from "preact";
import { useId, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Icon, type IconName } from "./icons";

export interface MenuItem {
  label: string;
  hint?: string;
  icon?: IconName;
  /** A choice among others rather than an act. */
  checked?: boolean;
  danger?: boolean;
  disabled?: boolean;
  /** A line above it. */
  apart?: boolean;
  href?: string;
  download?: boolean;
  run?: () => void;
}

interface Props {
  label: string;
  items: () => MenuItem[];
  class?: string;
  children: ComponentChildren;
  /** Said by screen readers and the tooltip where the children are only an icon. */
  iconOnly?: boolean;
  heading?: string;
  onOpen?: () => void;
  tabIndex?: number;
}

export function Menu({
  label,
  items,
  class: extra,
  children,
  iconOnly,
  heading,
  onOpen,
  tabIndex,
}: Props) {
  const button = useRef<HTMLButtonElement>(null);
  const list = useRef<HTMLDivElement>(null);
  const [open, setOpen] = useState(false);
  const id = useId();

  useLayoutEffect(() => {
    if (!open) return;
    const menu = list.current;
    const anchor = button.current;
    if (!menu || !anchor) return;
    menu.showPopover();
    // Its items may come, or become more, after it has opened.
    const sized = new ResizeObserver(() => place(menu, anchor));
    sized.observe(menu);
    place(menu, anchor);
    const first = menu.querySelector<HTMLElement>('[aria-checked="true"]') ?? entries(menu)[0];
    first?.focus();
    const onToggle = (event: Event) => {
      if ((event as ToggleEvent).newState === "closed") setOpen(false);
    };
    menu.addEventListener("toggle", onToggle);
    return () => {
      sized.disconnect();
      menu.removeEventListener("toggle", onToggle);
    };
  }, [open]);

  const close = () => {
    list.current?.hidePopover();
    setOpen(false);
    button.current?.focus();
  };

  return (
    <>
      <button
        type="button"
        ref={button}
        class={extra ?? "icon-button"}
        aria-label={label}
        title={iconOnly ? label : undefined}
        aria-haspopup="menu"
        aria-expanded={open}
        aria-controls={open ? id : undefined}
        tabIndex={tabIndex}
        onClick={(event) => {
          event.preventDefault();
          event.stopPropagation();
          if (!open) onOpen?.();
          setOpen(!open);
        }}
      >
        {children}
      </button>
      {open && (
        <div
          ref={list}
          id={id}
          class="menu"
          role="menu"
          popover="auto"
          aria-label={label}
          onKeyDown={(event) => {
            if (move(event, list.current!)) return;
            if (event.key === "Escape" || event.key === "Tab") {
              event.preventDefault();
              event.stopPropagation();
              close();
            }
          }}
        >
          {heading && <p class="menu-heading">{heading}</p>}
          {items().map((item) => (
            <Entry key={item.label} item={item} close={close} />
          ))}
        </div>
      )}
    </>
  );
}

function Entry({ item, close }: { item: MenuItem; close: () => void }) {
  const inner = (
    <>
      {item.checked !== undefined ? (
        <span class="menu-check">{item.checked && <Icon name="check" />}</span>
      ) : (
        item.icon && <Icon name={item.icon} />
      )}
      <span class="menu-label">
        <bdi>{item.label}</bdi>
        {item.hint && <small>{item.hint}</small>}
      </span>
    </>
  );
  const look = `menu-item ${item.danger ? "danger" : ""} ${item.apart ? "apart" : ""}`;
  if (item.href) {
    return (
      <a
        class={look}
        role="menuitem"
        tabIndex={-1}
        href={item.href}
        download={item.download}
        onClick={close}
      >
        {inner}
      </a>
    );
  }
  return (
    <button
      type="button"
      class={look}
      role={item.checked === undefined ? "menuitem" : "menuitemradio"}
      aria-checked={item.checked}
      aria-disabled={item.disabled}
      tabIndex={-1}
      onClick={(event) => {
        event.stopPropagation();
        if (item.disabled) return;
        close();
        item.run?.();
      }}
    >
      {inner}
    </button>
  );
}

function entries(menu: HTMLElement): HTMLElement[] {
  return [...menu.querySelectorAll<HTMLElement>('[role^="menuitem"]')];
}

function move(event: KeyboardEvent, menu: HTMLElement): boolean {
  const all = entries(menu);
  const at = all.indexOf(document.activeElement as HTMLElement);
  let to = -1;
  if (event.key === "ArrowDown") to = (at + 1) % all.length;
  else if (event.key === "ArrowUp") to = (at - 1 + all.length) % all.length;
  else if (event.key === "Home") to = 0;
  else if (event.key === "End") to = all.length - 1;
  else if (event.key.length === 1 && event.key !== " " && !event.ctrlKey && !event.metaKey) {
    const letter = event.key.toLowerCase();
    const order = [...all.slice(at + 1), ...all.slice(0, at + 1)];
    to = all.indexOf(
      order.find((one) => one.textContent?.trim().toLowerCase().startsWith(letter)) ?? all[at]!,
    );
  }
  if (to < 0) return false;
  event.preventDefault();
  event.stopPropagation();
  all[to]?.focus();
  return true;
}

const GAP = 6;

/** Below the button where there is room, above it otherwise; never outside of the window. */
function place(menu: HTMLElement, anchor: HTMLElement): void {
  const at = anchor.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = menu;
  const below = at.bottom + GAP + height <= innerHeight - GAP;
  const top = below ? at.bottom + GAP : Math.max(GAP, at.top - GAP - height);
  const left = Math.max(GAP, Math.min(at.left, innerWidth - width - GAP));
  menu.style.top = `${top}px`;
  menu.style.left = `${left}px`;
}
