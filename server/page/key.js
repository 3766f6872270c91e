/** Asks for an API key, in one dialog however many requests need one. */

import { byId } from "./dom.js";

/** @typedef {import("./api.js").Api} Api */

export class KeyDialog {
  #dialog = byId("key-dialog", HTMLDialogElement);
  #input = byId("key", HTMLInputElement);
  /** @type {Promise<boolean> | null} */
  #asking = null;

  constructor() {
    byId("key-cancel", HTMLButtonElement).addEventListener("click", () => this.#dialog.close());
  }

  /** @param {Api} api receives the key @param {boolean} refused @returns {Promise<boolean>} whether a key was given */
  ask(api, refused) {
    this.#asking ??= this.#ask(api, refused).finally(() => (this.#asking = null));
    return this.#asking;
  }

  /** @param {Api} api @param {boolean} refused @returns {Promise<boolean>} */
  #ask(api, refused) {
    byId("key-refused", HTMLElement).hidden = !refused;
    this.#input.value = "";
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
    return new Promise((resolve) => {
      const onClose = () => {
        const isGiven = this.#dialog.returnValue === "ok";
        if (isGiven) api.key = this.#input.value.trim();
        this.#input.value = "";
        resolve(isGiven);
      };
      this.#dialog.addEventListener("close", onClose, { once: true });
    });
  }
}
