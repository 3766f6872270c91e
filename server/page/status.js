/** The state of the server, from its `/metrics`. */

import { byId, el, meter, number, percent, seconds, showFigures, svg } from "./dom.js";

/** @typedef {import("./api.js").Api} Api */

const LOOK_MS = 2000; // between two requests
const GAP_MS = 3 * LOOK_MS; // after a longer pause, as in a tab in the background, the line chart starts anew
const KEPT = 60; // values in the line chart
const SAMPLE = /^[^\s{:]+:([^\s{]+)(?:\{(.*)\})? (\S+)$/;

/** Samples in the Prometheus text format, regardless of prefix; those that differ only in labels are summed. */
export class Samples {
  /** @type {Map<string, number>} */
  #values = new Map();

  /** @param {string} text */
  constructor(text) {
    for (const line of text.split("\n")) {
      const [, name, labels = "", value] = SAMPLE.exec(line) ?? [];
      if (name === undefined) continue;
      this.#add(name, Number(value));
      for (const [label] of labels.matchAll(/(finished_reason|reason)="[^"]*"/g)) this.#add(`${name} ${label}`, Number(value));
    }
  }

  /** @param {string} name of a sample, followed by one label if needed @returns {number} NaN if it does not exist */
  get(name) {
    return this.#values.get(name) ?? NaN;
  }

  /** @param {string} part @param {string} whole */
  share(part, whole) {
    return this.get(part) / this.get(whole);
  }

  /** @param {string} name @param {number} value */
  #add(name, value) {
    this.#values.set(name, (this.#values.get(name) ?? 0) + value);
  }
}

export class Status {
  /** @type {number[]} */
  #speeds = [];
  #lastLook = 0;
  /** @type {number | undefined} */
  #timer;
  #api;

  /** @param {Api} api */
  constructor(api) {
    this.#api = api;
  }

  /** Poll while the view is shown. @param {boolean} isShown */
  show(isShown) {
    clearInterval(this.#timer);
    if (!isShown) {
      this.#speeds = [];
      return;
    }
    this.#look();
    this.#timer = setInterval(() => document.hidden || this.#look(), LOOK_MS);
  }

  /** @param {[name: string, value: string][]} rows */
  setServer(rows) {
    showFigures(byId("status-server", HTMLElement), rows);
  }

  async #look() {
    const complaint = byId("status-complaint", HTMLElement);
    try {
      this.#draw(new Samples(await (await this.#api.get("metrics")).text()));
      complaint.hidden = true;
    } catch (error) {
      complaint.textContent = /** @type {Error} */ (error).message;
      complaint.hidden = false;
    }
  }

  /** @param {Samples} samples */
  #draw(samples) {
    const speed = samples.get("tokens_per_second");
    const now = performance.now();
    if (now - this.#lastLook > GAP_MS) this.#speeds = [];
    this.#lastLook = now;
    this.#speeds = [...this.#speeds, speed].slice(-KEPT);
    showFigures(byId("status-now", HTMLElement), [
      ["running requests", number(samples.get("num_requests_running")), "Answers being generated"],
      ["waiting requests", number(samples.get("num_requests_waiting")), "Waiting for a place in the batch, or for KV memory"],
      ["tokens per second", number(speed, 1), "Over the last 10 seconds"],
      ["tokens per round", number(samples.get("mean_acceptance_length"), 2), "Acceptance length, over the last 10 seconds"],
      ["drafts accepted", percent(samples.get("acceptance_rate")), "Over the last 10 seconds"],
      ["engine time spent drafting", percent(samples.share("draft_seconds_total", "engine_step_seconds_total")), "Since startup"],
    ]);
    byId("status-line", HTMLElement).replaceChildren(line(this.#speeds));
    byId("status-meters", HTMLElement).replaceChildren(
      meter("KV cache in use", samples.get("kv_cache_usage_perc")),
      meter("Prompt tokens found in the prefix cache", samples.share("prefix_cache_hits_total", "prefix_cache_queries_total")),
      meter("Pictures found in the encoder cache", samples.share("mm_cache_hits_total", "mm_cache_queries_total")),
    );
    const ended = (/** @type {string} */ how) => number(samples.get(`request_success_total finished_reason="${how}"`));
    showFigures(byId("status-totals", HTMLElement), [
      ["completed", ended("stop"), "Answers ended by the model or by a stop string"],
      ["cut off at a token limit", ended("length")],
      ["cancelled by clients", ended("abort")],
      ["failed", ended("error")],
      ["rejected", number(samples.get("admission_rejections_total")), "With a 503: too many requests, or the engine is unavailable"],
      ["prompt tokens", number(samples.get("prompt_tokens_total")), "Including cached ones"],
      ["generated tokens", number(samples.get("generation_tokens_total"))],
      ["time to first token", seconds(samples.share("time_to_first_token_seconds_sum", "time_to_first_token_seconds_count")), "On average"],
      ["preemptions", number(samples.get("num_preemptions_total")), "Answers evicted from KV memory, to be recomputed"],
    ]);
  }
}

/** @param {number[]} values the newest at the right */
function line(values) {
  const most = Math.max(10, ...values);
  const points = values.map((value, i) => `${KEPT - values.length + i},${(1 - value / most) * 100}`);
  const size = { viewBox: `0 0 ${KEPT - 1} 100`, preserveAspectRatio: "none" };
  const label = `From ${number(values[0], 1)} to ${number(values.at(-1), 1)} tokens per second; the scale ends at ${number(most)}`;
  const drawing = svg("svg", { ...size, role: "img", "aria-label": label }, svg("polyline", { points: points.join(" ") }));
  return el("figure", {}, drawing, el("figcaption", {}, `scale: 0 to ${number(most)}`));
}
