// Models on this machine and those that can be fetched: what they are, whether they fit, how fast
// they are here.

import { useEffect, useState } from "preact/hooks";
import { api } from "../api/client";
import { listen } from "../api/events";
import type { Model } from "../api/types";
import { bytes, t, when } from "../i18n";
import { session } from "../session";
import { toast } from "../ui/toasts";
import { ActionButton, Bar, Confirm, Facts, PageFrame, State, Waiting } from "./parts";
import { usePolled } from "./polled";
import { compact, duration, rate } from "./units";

const WHILE_WORKING_MS = 2000;
const USUALLY_MS = 10_000;

export default function ModelsPage() {
  const polled = usePolled(
    (signal) => api.models(signal),
    (page) => (page.items.some(isPulling) ? WHILE_WORKING_MS : USUALLY_MS),
  );
  const models = polled.data?.items;
  return (
    <PageFrame title={t("nav.models")} lede={t("models.lede")} busy={!models}>
      {models ? (
        <Lists models={models} again={polled.again} />
      ) : (
        <Waiting error={polled.error} again={polled.again} />
      )}
    </PageFrame>
  );
}

function Lists({ models, again }: { models: Model[]; again: () => void }) {
  const installed = models.filter((model) => model.installed);
  const others = models.filter((model) => !model.installed);
  return (
    <>
      <h2>{t("models.installed")}</h2>
      {installed.length === 0 && <p class="quiet">{t("models.none_installed")}</p>}
      <ul class="cards">
        {installed.map((model) => (
          <Installed key={model.name} model={model} again={again} />
        ))}
      </ul>
      <h2>{t("models.available")}</h2>
      {others.length === 0 && <p class="quiet">{t("models.all_installed")}</p>}
      <ul class="cards">
        {others.map((model) => (
          <Available key={model.name} model={model} again={again} />
        ))}
      </ul>
      {mayChange() ? <PullByName again={again} /> : <p class="quiet">{t("models.for_admins")}</p>}
    </>
  );
}

/** On a server with accounts only some may change what is installed. */
function mayChange(): boolean {
  return session.value?.admin !== false;
}

function isPulling(model: Model): boolean {
  return model.pull?.state === "running" || model.pull?.state === "queued";
}

function Installed({ model, again }: { model: Model; again: () => void }) {
  return (
    <li class="card model">
      <header>
        <h3 dir="auto">{model.name}</h3>
        {model.default && <span class="tag">{t("models.default")}</span>}
        {model.thinks && <span class="tag">{t("models.thinks")}</span>}
        <State kind={model.loaded ? "on" : "off"}>
          {model.loaded ? t("models.loaded") : t("models.not_loaded")}
        </State>
      </header>
      <Unreadable model={model} />
      <Facts facts={factsOf(model)} />
      <Fit model={model} />
      <Speed model={model} />
      {mayChange() && <Actions model={model} again={again} />}
    </li>
  );
}

/** A model of which nothing can be told but why. */
function Unreadable({ model }: { model: Model }) {
  if (!model.about || model.parameters) return null;
  return (
    <p class="notice warning" dir="auto">
      {model.about}
    </p>
  );
}

function Actions({ model, again }: { model: Model; again: () => void }) {
  const [asks, setAsks] = useState(false);
  const [busy, setBusy] = useState(false);
  const alone = (act: (name: string) => Promise<unknown>) => () => {
    setBusy(true);
    return act(model.name)
      .then(again)
      .finally(() => setBusy(false));
  };
  return (
    <>
      <div class="button-row">
        {model.loaded ? (
          <ActionButton
            label={t("models.unload_it", { name: model.name })}
            disabled={busy}
            run={alone(api.unloadModel)}
          >
            {t("models.unload")}
          </ActionButton>
        ) : (
          <ActionButton
            label={t("models.load_it", { name: model.name })}
            disabled={busy}
            run={alone(api.loadModel)}
          >
            {t("models.load")}
          </ActionButton>
        )}
        <ActionButton
          label={t("models.measure_it", { name: model.name })}
          disabled={busy}
          run={alone(api.measureModel)}
        >
          {t("models.measure")}
        </ActionButton>
        <button
          type="button"
          class="button quiet danger"
          aria-label={t("models.delete_it", { name: model.name })}
          disabled={busy}
          onClick={() => setAsks(true)}
        >
          {t("action.delete")}
        </button>
      </div>
      {asks && (
        <Confirm
          title={t("models.delete_it", { name: model.name })}
          text={t("models.delete_text", { size: bytes(model.size_bytes ?? 0) })}
          action={t("action.delete")}
          run={() =>
            api.removeModel(model.name).then(() => {
              toast(t("models.deleted", { name: model.name }));
              again();
            })
          }
          onClose={() => setAsks(false)}
        />
      )}
    </>
  );
}

function Available({ model, again }: { model: Model; again: () => void }) {
  const pulling = isPulling(model);
  return (
    <li class="card model">
      <header>
        <h3 dir="auto">{model.name}</h3>
        {model.thinks && <span class="tag">{t("models.thinks")}</span>}
      </header>
      <Unreadable model={model} />
      <Facts facts={factsOf(model)} />
      <Fit model={model} />
      {pulling ? (
        <PullProgress model={model} again={again} />
      ) : (
        <>
          {model.pull?.error && (
            <p class="notice danger" role="alert" dir="auto">
              {model.pull.error}
            </p>
          )}
          {mayChange() && (
            <div class="button-row">
              <ActionButton
                class="primary"
                label={t("models.pull_it", { name: model.name })}
                run={() => api.pull(model.name).then(again)}
              >
                {model.pull?.done_bytes ? t("models.pull_on") : t("models.pull")}
              </ActionButton>
            </div>
          )}
        </>
      )}
    </li>
  );
}

function factsOf(model: Model): [string, string][] {
  const facts: [string, string][] = [];
  if (model.size_bytes) facts.push([t("models.size"), bytes(model.size_bytes)]);
  if (model.parameters) facts.push([t("models.parameters"), parameters(model)]);
  if (model.context) facts.push([t("models.context"), t("unit.tokens", { n: model.context })]);
  if (model.precision) facts.push([t("models.precision"), model.precision]);
  facts.push([t("models.licence"), model.licence ?? t("models.licence_unknown")]);
  return facts;
}

function parameters(model: Model): string {
  const all = compact(model.parameters ?? 0);
  const active = model.active_parameters;
  if (!active || active === model.parameters) return all;
  return t("models.active", { all, active: compact(active) });
}

function Fit({ model }: { model: Model }) {
  const fits = model.fits;
  if (!fits) return null;
  const figures = { needs: bytes(fits.needs_bytes), has: bytes(fits.available_bytes) };
  if (fits.ok) return <p class="fit quiet">{t("models.fits", figures)}</p>;
  return (
    <p class="notice warning">
      <span>
        {t("models.fits_not", figures)} <span dir="auto">{fits.why}</span>
      </span>
    </p>
  );
}

function Speed({ model }: { model: Model }) {
  const speed = model.speed;
  if (!speed) return <p class="quiet">{t("models.speed_unknown")}</p>;
  const figures: string[] = [];
  if (speed.decode_tokens_per_s !== null)
    figures.push(t("models.speed_writes", { n: rate(speed.decode_tokens_per_s) }));
  if (speed.prefill_tokens_per_s !== null)
    figures.push(t("models.speed_reads", { n: rate(speed.prefill_tokens_per_s) }));
  if (speed.measured) figures.push(t("models.speed_when", { when: when(speed.measured) }));
  return <p class="speed">{figures.join(" · ")}</p>;
}

/** The bar of a running pull, fed by the server as it goes; the list is asked again at its end. */
function PullProgress({ model, again }: { model: Model; again: () => void }) {
  const [pull, setPull] = useState(model.pull);
  const [since] = useState(() => ({ at: performance.now(), bytes: model.pull?.done_bytes ?? 0 }));
  useEffect(() => {
    const stop = new AbortController();
    listen(
      api.pullEventsUrl(model.name),
      stop.signal,
      { onEvent: (event) => setPull(JSON.parse(event.data)) },
      (event) => !["running", "queued"].includes(JSON.parse(event.data).state),
    )
      .catch(() => {}) // the list is asked for either way
      .finally(() => {
        if (!stop.signal.aborted) again();
      });
    return () => stop.abort();
  }, [model.name]);
  const done = pull?.done_bytes ?? 0;
  const total = pull?.total_bytes || null;
  const perSecond = (done - since.bytes) / Math.max(0.5, (performance.now() - since.at) / 1000);
  const left = total && perSecond > 0 ? (total - done) / perSecond : null;
  return (
    <div class="pull">
      <Bar value={done} of={total} label={t("models.pulling", { name: model.name })} />
      <p class="quiet figures">
        {total
          ? t("models.pulled_of", { done: bytes(done), total: bytes(total) })
          : t("models.pull_starts")}
        {left !== null &&
          total &&
          done < total &&
          ` · ${t("models.pull_left", { time: duration(left) })}`}
      </p>
      <ActionButton
        label={t("models.pull_cancel_it", { name: model.name })}
        run={() => api.cancelPull(model.name).then(again)}
      >
        {t("action.cancel")}
      </ActionButton>
    </div>
  );
}

function PullByName({ again }: { again: () => void }) {
  const [name, setName] = useState("");
  return (
    <form
      class="pull-by-name"
      onSubmit={(event) => {
        event.preventDefault();
      }}
    >
      <label class="field">
        <span class="label">{t("models.other")}</span>
        <input
          class="input"
          value={name}
          spellcheck={false}
          autocapitalize="off"
          placeholder="org/model"
          aria-describedby="pull-hint"
          onInput={(event) => setName(event.currentTarget.value)}
        />
        <span class="hint" id="pull-hint">
          {t("models.other_hint")}
        </span>
      </label>
      <ActionButton
        disabled={!name.trim()}
        run={() =>
          api.pull(name.trim()).then(() => {
            setName("");
            again();
          })
        }
      >
        {t("models.pull")}
      </ActionButton>
    </form>
  );
}
