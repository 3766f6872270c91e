/** The parameters of a request besides its messages. Empty fields are left out: the server uses its defaults. */

import { byId, el } from "./dom.js";
import { load, save } from "./store.js";

const STORE = "specvlm.settings";
/**
 * Labels of what a draft may see of pictures; others are shown by their names.
 * @type {Record<string, string>}
 */
const COMPRESSORS = { auto: "server’s default", none: "all", text_only: "none" };
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

export class Settings {
  #form = byId("settings-form", HTMLFormElement);
  #onWrong;

  /** @param {() => void} onWrong called if a field is invalid, to bring it into view */
  constructor(onWrong) {
    this.#onWrong = onWrong;
    this.#restore();
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("change", () => this.#store());
    this.#form.addEventListener("reset", () => save(STORE, null));
  }

  /** Return whether all fields are valid, and show what is wrong otherwise. */
  check() {
    if (this.#form.checkValidity()) return true;
    this.#onWrong();
    return this.#form.reportValidity();
  }

  get system() {
    return this.#value("system").trim();
  }

  /** @returns {Record<string, unknown>} */
  request() {
    /** @type {Record<string, unknown>} */
    const request = { stream: true, stream_options: { include_usage: true } };
    if (this.#value("model")) request.model = this.#value("model");
    for (const name of NUMBERS) if (this.#value(name)) request[name] = Number(this.#value(name));
    const enabled = /** @type {HTMLInputElement} */ (this.#field("enabled")).checked;
    /** @type {Record<string, unknown>} */
    const speculative = { enabled, trace: enabled };
    if (this.#value("num_draft_tokens")) speculative.num_draft_tokens = Number(this.#value("num_draft_tokens"));
    if (this.#value("compressor")) speculative.compressor = this.#value("compressor");
    return { ...request, speculative };
  }

  /** @param {{id: string}[]} models */
  setModels(models) {
    this.#offer("model", models.map(({ id }) => [id, id]));
  }

  /** @param {number} limit draft tokens per tree, which a request can only lower @param {string[]} compressors */
  setDrafting(limit, compressors) {
    const field = /** @type {HTMLInputElement} */ (this.#field("num_draft_tokens"));
    field.max = String(limit);
    field.placeholder = `up to ${limit}`;
    this.#offer("compressor", compressors.map((name) => [name, COMPRESSORS[name] ?? name]));
  }

  /**
   * Offer a choice. What was chosen, also before a reload, stays so.
   * @param {string} name
   * @param {[value: string, text: string][]} options
   */
  #offer(name, options) {
    const select = /** @type {HTMLSelectElement} */ (this.#field(name));
    const chosen = select.value || this.#stored[name];
    select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    // Not by an attribute, which a reset would return to.
    if (options.some(([value]) => value === chosen)) select.value = chosen;
  }

  /** @param {string} name */
  #value(name) {
    return this.#field(name).value;
  }

  /** @param {string} name */
  #field(name) {
    return /** @type {HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement} */ (this.#form.elements.namedItem(name));
  }

  #store() {
    const { model, compressor } = this.#stored; // the form has none until the server has sent its lists
    save(STORE, JSON.stringify({ model, compressor, ...Object.fromEntries(new FormData(this.#form)) }));
  }

  /** @returns {Record<string, string>} */
  get #stored() {
    return JSON.parse(load(STORE) ?? "{}");
  }

  /** Restore fields after a reload; choices from lists once the server has sent the lists. */
  #restore() {
    if (load(STORE) === null) return;
    for (const [name, value] of Object.entries(this.#stored)) {
      const field = this.#form.elements.namedItem(name);
      if (field) this.#field(name).value = value; // another version of the page may have had other fields
    }
    /** @type {HTMLInputElement} */ (this.#field("enabled")).checked = "enabled" in this.#stored;
  }
}
