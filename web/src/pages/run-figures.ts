// The rows of a run's metrics.jsonl (mull/train/metrics.py), gathered into what its page shows.

import type { Section } from "./charts";
import type { Points } from "./points";

type Row = { [key: string]: unknown };

export interface Evaluation {
  stage: string;
  task: string;
  family: string;
  ood: boolean;
  problems: number;
  passAt1: number;
  stderr: number;
}

export interface StageEnd {
  seconds: number | null;
  joules: number | null;
  usd: number | null;
  tokensTrained: number | null;
  tokensSampled: number | null;
}

export interface Figures {
  /** Steps of all stages, counted through. */
  steps: number;
  curves: Map<string, Points>;
  sections: Section[];
  evaluations: Evaluation[];
  ends: Map<string, StageEnd>;
}

export function noFigures(): Figures {
  return { steps: 0, curves: new Map(), sections: [], evaluations: [], ends: new Map() };
}

/** As they are now: what is shown is drawn again only where it is another object. */
export function copied(figures: Figures): Figures {
  const curves = new Map<string, Points>();
  for (const [name, { x, y }] of figures.curves) curves.set(name, { x: [...x], y: [...y] });
  const { sections, evaluations, ends } = figures;
  return {
    ...figures,
    curves,
    sections: [...sections],
    evaluations: [...evaluations],
    ends: new Map(ends),
  };
}

/** Adds rows in the order of the file; what is no row of ours is passed over. */
export function gather(figures: Figures, rows: Row[]): void {
  for (const row of rows) {
    if (row.kind === "step") takeStep(figures, row);
    else if (row.kind === "eval") takeEvaluation(figures, row);
    else if (row.kind === "stage_end") takeEnd(figures, row);
  }
}

function takeStep(figures: Figures, row: Row): void {
  figures.steps += 1;
  const stage = String(row.stage ?? "");
  if (figures.sections.at(-1)?.name !== stage)
    figures.sections.push({ at: figures.steps, name: stage });
  for (const values of [row.values, row.time]) {
    for (const [name, value] of Object.entries(object(values))) {
      if (name === "at" || typeof value !== "number" || !Number.isFinite(value)) continue;
      let curve = figures.curves.get(name);
      if (!curve) {
        curve = { x: [], y: [] };
        figures.curves.set(name, curve);
      }
      curve.x.push(figures.steps);
      curve.y.push(value);
    }
  }
}

function takeEvaluation(figures: Figures, row: Row): void {
  const passAt1 = figure(row.pass_at_1);
  if (passAt1 === null) return;
  figures.evaluations.push({
    stage: String(row.stage ?? ""),
    task: String(row.task ?? ""),
    family: String(row.family ?? ""),
    ood: row.ood === true,
    problems: figure(row.problems) ?? 0,
    passAt1,
    stderr: figure(row.stderr) ?? 0,
  });
}

function takeEnd(figures: Figures, row: Row): void {
  const time = object(row.time);
  figures.ends.set(String(row.stage ?? ""), {
    seconds: figure(time.seconds),
    joules: figure(time.joules),
    usd: figure(time.dollars),
    tokensTrained: figure(row.tokens_trained),
    tokensSampled: figure(row.tokens_sampled),
  });
}

function object(value: unknown): { [key: string]: unknown } {
  return value && typeof value === "object" ? (value as { [key: string]: unknown }) : {};
}

function figure(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}
