/** Selects the view shown. On wide screens the chat is always visible and has no tab. */

const NAMES = ["chat", "inside", "settings", "status"];

export class Tabs {
  #wide = matchMedia("(min-width: 60rem)"); // as in style.css
  #shown = "";
  #onShow;

  /** @param {(name: string) => void} onShow */
  constructor(onShow) {
    this.#onShow = onShow;
    for (const name of NAMES) {
      this.#tab(name).addEventListener("click", () => this.show(name));
      this.#tab(name).addEventListener("keydown", (event) => this.#onKey(event));
    }
    this.#wide.addEventListener("change", () => this.show(this.#shown));
    this.show("chat");
  }

  get isWide() {
    return this.#wide.matches;
  }

  /** @param {string} name */
  show(name) {
    this.#shown = this.isWide && name === "chat" ? "inside" : name;
    for (const each of NAMES) {
      const [tab, panel] = [this.#tab(each), /** @type {HTMLElement} */ (document.getElementById(each))];
      tab.setAttribute("aria-selected", String(each === this.#shown));
      tab.tabIndex = each === this.#shown ? 0 : -1;
      panel.hidden = each !== this.#shown && !(this.isWide && each === "chat");
    }
    this.#onShow(this.#shown);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const names = this.isWide ? NAMES.slice(1) : NAMES;
    const at = names.indexOf(this.#shown);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const name = names[(to + names.length) % names.length];
    this.show(name);
    this.#tab(name).focus();
  }

  /** @param {string} name */
  #tab(name) {
    return /** @type {HTMLElement} */ (document.getElementById(`${name}-tab`));
  }
}
