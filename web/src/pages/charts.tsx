// Small line charts: one measure each, drawn as SVG over HTML labels so that they scale with the page.

import { useState } from "preact/hooks";
import { t } from "../i18n";
import { nearest, type Points, thinned } from "./points";

const WIDTH = 300;
const HEIGHT = 90;

/** Where on the x axis something begins, and its name. */
export interface Section {
  at: number;
  name: string;
}

export function LineChart({
  title,
  hint,
  points,
  sections = [],
  from,
  to,
  lowest,
  format,
}: {
  title: string;
  hint?: string;
  points: Points;
  sections?: Section[];
  /** Ends of the x axis, shared by the charts of a page. */
  from: number;
  to: number;
  /** The y axis begins here (or lower, where the curve does). */
  lowest?: number;
  format: (value: number) => string;
}) {
  const [picked, pick] = useState<number | null>(null);
  const thin = thinned(points);
  const count = thin.y.length;
  if (count === 0) return null;
  const low = Math.min(lowest ?? Number.POSITIVE_INFINITY, ...thin.y);
  const high = Math.max(...thin.y);
  const span = high - low || Math.abs(high) || 1;
  const width = to - from || 1;
  const left = (x: number) => ((x - from) / width) * WIDTH;
  const top = (y: number) => HEIGHT - ((y - low) / span) * HEIGHT;
  const shown = picked === null ? count - 1 : picked;
  const value = format(thin.y[shown]!);
  const near = (event: PointerEvent) => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    const x = from + ((event.clientX - box.left) / box.width) * width;
    pick(nearest(thin.x, x));
  };
  const step = (event: KeyboardEvent) => {
    const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (by === 0) return;
    event.preventDefault();
    pick(Math.min(count - 1, Math.max(0, shown + by)));
  };
  const summary = t("runs.chart_summary", {
    title,
    first: format(thin.y[0]!),
    last: format(thin.y[count - 1]!),
    low: format(Math.min(...thin.y)),
    high: format(high),
  });
  return (
    <figure class="chart">
      <figcaption>
        <span class="chart-title" title={hint}>
          {title}
        </span>
        <span class="chart-value">
          {value}
          {picked !== null && (
            <span class="quiet"> · {t("runs.at_step", { n: thin.x[shown]! })}</span>
          )}
        </span>
      </figcaption>
      <div class="chart-body">
        <div class="chart-ends" aria-hidden="true">
          <span>{format(high)}</span>
          <span>{format(low)}</span>
        </div>
        {/* Arrow keys walk along the curve; the slider role tells screen readers so. */}
        <div
          class="plot"
          role="slider"
          tabIndex={0}
          aria-label={summary}
          aria-valuemin={thin.x[0]}
          aria-valuemax={thin.x[count - 1]}
          aria-valuenow={thin.x[shown]}
          aria-valuetext={`${t("runs.at_step", { n: thin.x[shown]! })}: ${value}`}
          onPointerMove={near}
          onPointerDown={near}
          onPointerLeave={() => pick(null)}
          onKeyDown={step}
          onBlur={() => pick(null)}
        >
          <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
            {sections.slice(1).map((section) => (
              <path key={section.at} class="section" d={`M${left(section.at)} 0V${HEIGHT}`} />
            ))}
            {picked !== null && <path class="cross" d={`M${left(thin.x[picked]!)} 0V${HEIGHT}`} />}
            <path class="curve" d={pathOf(thin, sections, left, top)} />
          </svg>
          <span
            class="dot"
            aria-hidden="true"
            style={{
              left: `${(left(thin.x[shown]!) / WIDTH) * 100}%`,
              top: `${(top(thin.y[shown]!) / HEIGHT) * 100}%`,
            }}
          />
        </div>
      </div>
    </figure>
  );
}

/** The last values of something, without axes; `slots` are those that fit, the newest at the right. */
export function Sparkline({
  values,
  slots,
  label,
}: {
  values: number[];
  slots: number;
  label: string;
}) {
  const high = Math.max(1, ...values);
  const points = values.map((value, index) => {
    const x = WIDTH - ((values.length - 1 - index) / (slots - 1)) * WIDTH;
    return `${x.toFixed(1)} ${(HEIGHT - (value / high) * HEIGHT).toFixed(1)}`;
  });
  return (
    <svg
      class="spark"
      viewBox={`0 -2 ${WIDTH} ${HEIGHT + 4}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={label}
    >
      <path class="curve" d={`M${points.join("L")}`} />
    </svg>
  );
}

/** A line per section: from one stage to the next there is no way. */
function pathOf(
  points: Points,
  sections: Section[],
  left: (x: number) => number,
  top: (y: number) => number,
): string {
  let d = "";
  let next = 0;
  points.x.forEach((x, i) => {
    let begins = i === 0;
    while (next < sections.length && sections[next]!.at <= x) {
      begins = true;
      next += 1;
    }
    d += `${begins ? "M" : "L"}${left(x).toFixed(1)} ${top(points.y[i]!).toFixed(1)}`;
  });
  return d;
}
