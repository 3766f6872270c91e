/** One question and its answer in the conversation. */

import { byId, el, number } from "./dom.js";

/** @typedef {import("./answer.js").Answer} Answer */
/** @typedef {import("./answer.js").Piece} Piece */
/** @typedef {import("./composer.js").Picture} Picture */

/** @typedef {{onLook: (round: number | null) => void, onAgain: () => void, onEdit: () => void}} Actions */

const NEAR_END = 80; // pixels from the end within which the view follows the answer

export class ExchangeView {
  #text = el("p", { class: "text" });
  #foot = el("div", { class: "foot" });
  #bubble = el("article", { class: "answer", "aria-label": "Answer", "aria-busy": "true" }, this.#text, this.#foot);
  #answer;
  #actions;

  /** @param {string} text @param {Picture[]} pictures @param {Answer} answer @param {Actions} actions */
  constructor(text, pictures, answer, actions) {
    this.#answer = answer;
    this.#actions = actions;
    const images = pictures.map(({ name, url }) => el("img", { src: url, alt: name }));
    const question = el("article", { class: "question", "aria-label": "You" }, ...images);
    if (text) question.append(el("p", { class: "text" }, text));
    this.element = el("div", { class: "exchange" }, question, this.#bubble);
    this.#text.addEventListener("click", (event) => {
      const round = event.target instanceof HTMLElement ? event.target.dataset.round : undefined;
      if (round !== undefined && getSelection()?.isCollapsed) actions.onLook(Number(round));
    });
  }

  /** @param {Piece[]} pieces */
  add(pieces) {
    const log = this.element.parentElement;
    const follows = log && log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END;
    for (const { kind, round, text } of pieces) {
      const isDrafted = round >= 0;
      this.#text.append(isDrafted ? el("span", { class: kind, "data-round": round }, text) : text);
    }
    if (follows) log.scrollTop = log.scrollHeight;
  }

  finish() {
    this.#bubble.setAttribute("aria-busy", "false");
    const { state, error, text } = this.#answer;
    if (error) this.#showError(error);
    else if (state === "stopped") this.#foot.append(el("span", { class: "note" }, "Stopped."));
    else if (!text) this.#foot.append(el("span", { class: "note" }, "The model returned an empty answer."));
    else if (this.#answer.finishReason === "length") {
      this.#foot.append(el("span", { class: "note" }, "Cut off at the token limit."));
    }
    if (text) this.#foot.append(this.#copyButton(), this.#lookButton());
    if (!text) this.#foot.append(...this.#retryButtons());
    this.#foot.scrollIntoView({ block: "nearest" });
  }

  remove() {
    this.element.remove();
  }

  /** @param {Error} error */
  #showError(error) {
    this.#bubble.append(el("p", { class: "error", role: "alert" }, error.message), this.#foot);
  }

  #lookButton() {
    const { numTokens, usage, rounds, acceptanceLength, tokensPerSecond } = this.#answer;
    const parts = [`${number(usage?.completion_tokens ?? numTokens)} tokens`];
    if (rounds.length) parts.push(`${number(acceptanceLength, 1)} per round`);
    if (tokensPerSecond) parts.push(`${number(tokensPerSecond)} per second`);
    const attributes = { type: "button", title: "Look inside", click: () => this.#actions.onLook(null) };
    return el("button", attributes, parts.join(" · "));
  }

  #copyButton() {
    const button = el("button", { type: "button" }, "Copy");
    button.addEventListener("click", async () => {
      await copy(this.#answer.text);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    return button;
  }

  #retryButtons() {
    return [
      el("button", { type: "button", click: () => this.#actions.onAgain() }, "Try again"),
      el("button", { type: "button", click: () => this.#actions.onEdit() }, "Edit"),
    ];
  }
}

/** Over plain http, browsers offer pages no clipboard API, only the old command. @param {string} text */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = el("textarea", { readonly: true, class: "unseen", "aria-hidden": "true" });
  area.value = text;
  byId("log", HTMLElement).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
