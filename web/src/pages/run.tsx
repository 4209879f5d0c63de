// One training run: how far it is, its curves, what it answers, what it has cost.

import { useState } from "preact/hooks";
import { api } from "../api/client";
import type { Run } from "../api/types";
import { type Key, number, t, usd, when } from "../i18n";
import { Icon } from "../ui/icons";
import { LineChart } from "./charts";
import { Facts, PageFrame, Waiting } from "./parts";
import { usePolled } from "./polled";
import { copied, type Evaluation, type Figures, gather, noFigures } from "./run-figures";
import { Samples } from "./run-samples";
import { RunProgress, RunState } from "./runs";
import { duration, energy } from "./units";

const POLL_MS = 2000;

export default function RunPage({ id }: { id: string }) {
  const [log] = useState(() => ({ figures: noFigures(), next: 0 }));
  const polled = usePolled(
    async (signal) => {
      // The run first: what it has written when it says "done" is all there is.
      const run = await api.run(id, signal);
      for (;;) {
        const { rows, next, reset } = await api.runMetrics(id, log.next, signal);
        if (reset) log.figures = noFigures();
        gather(log.figures, rows);
        if (rows.length === 0 || next === log.next) break;
        log.next = next;
      }
      return { run, figures: copied(log.figures) };
    },
    ({ run }) => (run.state === "running" ? POLL_MS : null),
  );
  if (!polled.data) {
    return (
      <PageFrame title={t("nav.runs")} busy={!polled.error}>
        <Back />
        <Waiting error={polled.error} again={polled.again} />
      </PageFrame>
    );
  }
  const { run, figures } = polled.data;
  return (
    <PageFrame title={run.name} lede={run.about}>
      <p class="run-head">
        <RunState run={run} />
        {run.has_report && (
          <a class="button" href={api.runReportUrl(run.id)} target="_blank" rel="noopener">
            <Icon name="external" />
            {t("runs.report")}
          </a>
        )}
        <Back />
      </p>
      <RunProgress run={run} />
      <Bill run={run} />
      <Curves figures={figures} />
      <Stages run={run} figures={figures} />
      <Scores evaluations={figures.evaluations} />
      <Samples id={run.id} live={run.state === "running"} />
    </PageFrame>
  );
}

function Back() {
  return (
    <a class="back" href="/runs">
      <Icon name="left" />
      {t("runs.all")}
    </a>
  );
}

function Bill({ run }: { run: Run }) {
  const bill = run.bill;
  const facts: [string, string][] = [];
  if (run.started) facts.push([t("runs.bill_started"), when(run.started)]);
  if (bill) {
    facts.push([t("runs.bill_time"), duration(bill.seconds)]);
    if (bill.joules !== null) facts.push([t("runs.bill_energy"), energy(bill.joules)]);
    if (bill.usd !== null) facts.push([t("runs.bill_cost"), usd(bill.usd)]);
  }
  return facts.length > 0 ? <Facts facts={facts} /> : null;
}

const percent = (value: number) => t("unit.percent", { n: number(value * 100, 1) });
const whole = (value: number) => number(value);
const small = (value: number) => number(value, Math.abs(value) < 0.1 ? 4 : 2);

interface Measure {
  name: string;
  label: Key;
  hint: Key;
  format: (value: number) => string;
  lowest?: number;
}

const FIRST: Measure[] = [
  measure("reward", small, 0),
  measure("pass_at_1", percent, 0),
  measure("length", whole, 0),
  measure("loss", small),
];
const MORE: Measure[] = [
  measure("validation_loss", small),
  measure("entropy", small, 0),
  measure("dead_groups", percent, 0),
  measure("truncated", percent, 0),
  measure("gap", small, 0),
  measure("kl", small, 0),
  measure("clipped", percent, 0),
  measure("grad_norm", small, 0),
  measure("learning_rate", (value) => value.toPrecision(2), 0),
  measure("rollout_tokens_per_s", whole, 0),
  measure("update_tokens_per_s", whole, 0),
  measure("utilisation", percent, 0),
];

function measure(name: string, format: (value: number) => string, lowest?: number): Measure {
  return {
    name,
    label: `runs.measure_${name}` as Key,
    hint: `runs.hint_${name}` as Key,
    format,
    lowest,
  };
}

function Curves({ figures }: { figures: Figures }) {
  if (figures.steps === 0) return <p class="quiet">{t("runs.no_steps")}</p>;
  const more = MORE.filter(({ name }) => figures.curves.has(name));
  return (
    <section aria-label={t("runs.curves")}>
      <h2>{t("runs.curves")}</h2>
      {figures.sections.length > 1 && (
        <p class="quiet">
          {t("runs.sections", { names: figures.sections.map(({ name }) => name).join(" → ") })}
        </p>
      )}
      <Charts figures={figures} measures={FIRST} />
      {more.length > 0 && (
        <details class="more-measures">
          <summary>{t("runs.more_measures")}</summary>
          <Charts figures={figures} measures={more} />
        </details>
      )}
    </section>
  );
}

function Charts({ figures, measures }: { figures: Figures; measures: Measure[] }) {
  return (
    <div class="charts">
      {measures.map(({ name, label, hint, format, lowest }) => {
        const points = figures.curves.get(name);
        if (!points) return null;
        return (
          <LineChart
            key={name}
            title={t(label)}
            hint={t(hint)}
            points={points}
            sections={figures.sections}
            from={1}
            to={figures.steps}
            lowest={lowest}
            format={format}
          />
        );
      })}
    </div>
  );
}

function Stages({ run, figures }: { run: Run; figures: Figures }) {
  if (run.stages.length === 0) return null;
  return (
    <section aria-label={t("runs.stages")}>
      <h2>{t("runs.stages")}</h2>
      <ScrollTable label={t("runs.stages")}>
        <thead>
          <tr>
            <th scope="col">{t("runs.stage")}</th>
            <th scope="col">{t("runs.kind")}</th>
            <th scope="col">{t("runs.state")}</th>
            <th scope="col" class="figure">
              {t("runs.steps")}
            </th>
            <th scope="col" class="figure">
              {t("runs.tokens")}
            </th>
            <th scope="col" class="figure">
              {t("runs.bill_time")}
            </th>
            <th scope="col" class="figure">
              {t("runs.bill_cost")}
            </th>
          </tr>
        </thead>
        <tbody>
          {run.stages.map((stage) => {
            const end = figures.ends.get(stage.name);
            const tokens = (end?.tokensTrained ?? 0) + (end?.tokensSampled ?? 0);
            return (
              <tr key={stage.name}>
                <th scope="row">{stage.name}</th>
                <td>{stage.kind}</td>
                <td>{stageState(stage.state)}</td>
                <td class="figure">
                  {stage.steps
                    ? `${number(stage.step)} / ${number(stage.steps)}`
                    : number(stage.step)}
                </td>
                <td class="figure">{tokens ? number(tokens) : "–"}</td>
                <td class="figure">{end?.seconds != null ? duration(end.seconds) : "–"}</td>
                <td class="figure">{end?.usd != null ? usd(end.usd) : "–"}</td>
              </tr>
            );
          })}
        </tbody>
      </ScrollTable>
    </section>
  );
}

const STAGE_STATES = ["waiting", "running", "done", "stopped", "failed"];

function stageState(state: string): string {
  return STAGE_STATES.includes(state) ? t(`runs.state_${state}` as Key) : state;
}

/** pass@1 of every family (down) after every stage (across), as in the R1 paper's table. */
function Scores({ evaluations }: { evaluations: Evaluation[] }) {
  if (evaluations.length === 0) return null;
  const stages = [...new Set(evaluations.map(({ stage }) => stage))];
  const rowOf = (e: Evaluation) => `${e.ood ? 1 : 0} ${e.task} ${e.family}`;
  const rows = [...new Map(evaluations.map((e) => [rowOf(e), e])).values()];
  rows.sort((one, other) => Number(one.ood) - Number(other.ood));
  const cells = new Map(evaluations.map((e) => [`${e.stage} ${rowOf(e)}`, e]));
  return (
    <section aria-label={t("runs.scores")}>
      <h2>{t("runs.scores")}</h2>
      <p class="quiet">{t("runs.scores_hint")}</p>
      <ScrollTable label={t("runs.scores")}>
        <thead>
          <tr>
            <th scope="col">{t("runs.family")}</th>
            {stages.map((stage) => (
              <th scope="col" class="figure" key={stage}>
                {stage}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => {
            const scored = stages.map((stage) => cells.get(`${stage} ${rowOf(row)}`));
            const best = Math.max(...scored.map((cell) => cell?.passAt1 ?? -1));
            return (
              <tr key={rowOf(row)}>
                <th scope="row">
                  {row.family || row.task}
                  {row.ood && <span class="quiet"> {t("runs.harder")}</span>}
                </th>
                {scored.map((cell, index) => (
                  <td
                    key={stages[index]}
                    class={cell && cell.passAt1 === best && best > 0 ? "figure best" : "figure"}
                  >
                    {cell ? score(cell) : "–"}
                  </td>
                ))}
              </tr>
            );
          })}
        </tbody>
      </ScrollTable>
    </section>
  );
}

function score(cell: Evaluation): string {
  return `${number(cell.passAt1 * 100, 1)} ± ${number(cell.stderr * 100, 1)}`;
}

function ScrollTable({ label, children }: { label: string; children: preact.ComponentChildren }) {
  return (
    <section class="table-scroll" aria-label={label} tabIndex={0}>
      <table class="figures-table">{children}</table>
    </section>
  );
}
