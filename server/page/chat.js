/** The conversation: questions, their answers, and the answer being generated. */

import { Answer } from "./answer.js";
import { ExchangeView } from "./exchange.js";

/** @typedef {import("./composer.js").Picture} Picture */

/** @typedef {{text: string, pictures: Picture[], answer: Answer, view: ExchangeView}} Exchange */

/**
 * @typedef {object} Parts
 * @property {import("./api.js").Api} api
 * @property {import("./settings.js").Settings} settings
 * @property {import("./composer.js").Composer} composer
 * @property {HTMLElement} log
 * @property {import("./inside.js").Inside} inside
 * @property {() => void} onLook the user wants to look inside an answer
 */

export class Chat {
  /** @type {Exchange[]} */
  #exchanges = [];
  /** @type {AbortController | null} */
  #running = null;
  #parts;

  /** @param {Parts} parts */
  constructor(parts) {
    this.#parts = parts;
  }

  /** @param {string} text @param {Picture[]} pictures @returns {boolean} whether it was sent */
  send(text, pictures) {
    if (!this.#mayAsk()) return false;
    this.#answer(text, pictures);
    return true;
  }

  /** Whether there is no running answer and no wrong setting; shows the user a wrong one. */
  #mayAsk() {
    return !this.#running && this.#parts.settings.check();
  }

  /** Stop the running answer; what has arrived stays. */
  stop() {
    this.#running?.abort();
  }

  reset() {
    this.stop();
    this.#exchanges.forEach(({ view }) => view.remove());
    this.#exchanges = [];
    this.#parts.inside.clear();
  }

  /** @param {string} text @param {Picture[]} pictures */
  async #answer(text, pictures) {
    const { api, settings, composer, log, inside, onLook } = this.#parts;
    const answer = new Answer(performance.now());
    const view = new ExchangeView(text, pictures, answer, {
      onLook: (round) => {
        this.#show(exchange, round);
        onLook();
      },
      onAgain: () => {
        if (!this.#mayAsk()) return;
        this.#drop(exchange);
        this.#answer(text, pictures);
        composer.focusStop();
      },
      onEdit: () => {
        if (this.#running) return;
        this.#drop(exchange);
        composer.recall(text, pictures);
        composer.focus();
      },
    });
    const exchange = { text, pictures, answer, view };
    const running = new AbortController();
    this.#running = running;
    this.#exchanges.push(exchange);
    composer.setBusy(true);
    log.append(view.element);
    view.element.scrollIntoView({ block: "start" });
    this.#show(exchange, null);
    try {
      const body = { ...settings.request(), messages: this.#messages(exchange) };
      for await (const chunk of api.chat(body, running.signal)) {
        view.add(answer.take(chunk, performance.now()));
        inside.grow(answer);
      }
      answer.state = "finished";
    } catch (error) {
      answer.state = running.signal.aborted ? "stopped" : "failed";
      answer.error = running.signal.aborted ? null : /** @type {Error} */ (error);
    } finally {
      view.finish();
      inside.grow(answer);
      this.#running = null;
      composer.setBusy(false);
    }
  }

  /**
   * The exchanges that form the prompt of this one. Questions without an answer are left out: they would fail again.
   * @param {Exchange} exchange
   */
  #promptOf(exchange) {
    const before = this.#exchanges.slice(0, this.#exchanges.indexOf(exchange));
    return [...before.filter(({ answer }) => answer.text), exchange];
  }

  /** @param {Exchange} exchange */
  #messages(exchange) {
    const { system } = this.#parts.settings;
    /** @type {object[]} */
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const { text, pictures, answer } of this.#promptOf(exchange)) {
      const content = pictures.map(({ url }) => /** @type {object} */ ({ type: "image_url", image_url: { url } }));
      if (text) content.push({ type: "text", text });
      messages.push({ role: "user", content });
      if (answer.text) messages.push({ role: "assistant", content: answer.text });
    }
    return messages;
  }

  /** @param {Exchange} exchange @param {number | null} round */
  #show(exchange, round) {
    for (const { view } of this.#exchanges) view.element.classList.toggle("looked-at", view === exchange.view);
    const pictures = this.#promptOf(exchange).flatMap(({ pictures }) => pictures);
    this.#parts.inside.show(exchange.answer, pictures, round);
  }

  /** @param {Exchange} exchange */
  #drop(exchange) {
    exchange.view.remove();
    this.#exchanges = this.#exchanges.filter((other) => other !== exchange);
  }
}
