// What of the frame is open.

import { signal } from "@preact/signals";

const NARROW = window.matchMedia("(max-width: 48rem)");

export const narrow = signal(NARROW.matches);
/** Whether the list is shown: open on wide screens, a closed drawer on narrow ones. */
export const sidebarOpen = signal(!NARROW.matches);
export const shortcutListOpen = signal(false);

NARROW.addEventListener("change", () => {
  narrow.value = NARROW.matches;
  sidebarOpen.value = !NARROW.matches;
});

export function toggleSidebar(): void {
  sidebarOpen.value = !sidebarOpen.value;
}
