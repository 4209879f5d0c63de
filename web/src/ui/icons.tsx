// Line icons on a 24 grid, drawn here so that nothing is fetched and all have one hand.

const PATHS = {
  plus: "M12 5v14M5 12h14",
  search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM20 20l-4-4",
  menu: "M4 7h16M4 12h16M4 17h10",
  panel: "M5 5h14a1 1 0 0 1 1 1v12a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1zM9.5 5v14",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v10H9zM6 15H5V5h10v1",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M5 19l1-4L16.5 4.5a1.4 1.4 0 0 1 2 0l1 1a1.4 1.4 0 0 1 0 2L9 18zM14.5 6.5l3 3",
  again: "M19 8a8 8 0 1 0 1 5M20 4v5h-5",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M6 9.5l6 6 6-6",
  clip: "M19 11.5l-7.5 7.5a4.6 4.6 0 0 1-6.5-6.5l8-8a3 3 0 0 1 4.3 4.3l-7.8 7.8a1.5 1.5 0 0 1-2.1-2.1l7-7",
  file: "M7 3.5h7l4 4V20a.5.5 0 0 1-.5.5h-10.5A.5.5 0 0 1 6.500 20V4a.5.5 0 0 1 .5-.5zM14 3.5v4h4",
  pin: "M9 4h6l-1 6 3 3H7l3-3zM12 13v7",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12.500h8L17 7",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  folder: "M4 7a1 1 0 0 1 1-1h4.500l2 2.500H19a1 1 0 0 1 1 1V17a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1z",
  tag: "M4 12V5a1 1 0 0 1 1-1h7l8 8-8 8zM8.500 8.500h.01",
  gear: "M12 15a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM12 3.500v2.500M12 18v2.500M3.500 12H6M18 12h2.500M6 6l1.800 1.800M16.200 16.200L18 18M18 6l-1.800 1.800M7.800 16.200L6 18",
  cube: "M12 3.500l7.500 4.250v8.500L12 20.500l-7.500-4.250v-8.500zM12 12l7.500-4.250M12 12v8.500M12 12L4.500 7.750",
  chart: "M4 20V4M4 20h16M8 15l3.500-4.500 3 2.500L19 7",
  pulse: "M3.500 12h4l2.500-6.500 4 13 2.500-6.500h4",
  keyboard:
    "M4 7h16a1 1 0 0 1 1 1v8a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V8a1 1 0 0 1 1-1zM7 10.500h.01M11 10.500h.01M15 10.500h.01M8 14h8",
  sliders:
    "M5 8h8M17 8h2M5 16h2M11 16h8M15 10.200a2.200 2.200 0 1 0 0-4.400 2.200 2.200 0 0 0 0 4.400zM9 18.200a2.200 2.200 0 1 0 0-4.400 2.200 2.200 0 0 0 0 4.400z",
  columns: "M5 5h14a1 1 0 0 1 1 1v12a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1zM12 5v14",
  download: "M12 4v11M7.500 11l4.500 4.500 4.500-4.500M5 20h14",
  upload: "M12 16V5M7.500 9L12 4.500 16.500 9M5 20h14",
  forward: "M5 6l6 6-6 6M13 6l6 6-6 6",
  skip: "M5 6l9 6-9 6zM18.500 6v12",
  warning: "M12 4l9 16H3zM12 10v4.500M12 17.300h.01",
  info: "M12 20.500a8.500 8.500 0 1 0 0-17 8.500 8.500 0 0 0 0 17zM12 11v5M12 8h.01",
  thought: "M5 7h14M5 12h9M5 17h5",
  external:
    "M13 5h6v6M19 5l-8 8M17 14v4.500a.5.5 0 0 1-.5.5h-11a.5.5 0 0 1-.5-.5v-11a.5.5 0 0 1 .5-.5H10",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name, size }: { name: IconName; size?: number }) {
  return (
    <svg
      class={name === "more" ? "icon dots" : "icon"}
      viewBox="0 0 24 24"
      aria-hidden="true"
      focusable="false"
      style={size ? { width: `${size}px`, height: `${size}px` } : undefined}
    >
      <path d={PATHS[name]} />
    </svg>
  );
}
