/** The message editor: text, and pictures that are dropped, pasted or chosen. */

import { byId, el } from "./dom.js";

/** A picture in a message. @typedef {{name: string, url: string}} Picture `url` begins with `data:` */

const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];

export class Composer {
  /** @type {Picture[]} */
  pictures = [];
  /** How many calls of `add` are reading files. */
  #reading = 0;
  /** Whether the message is to be sent once all files are read. */
  #isAwaited = false;
  #form = byId("composer", HTMLFormElement);
  #text = byId("text", HTMLTextAreaElement);
  #files = byId("files", HTMLInputElement);
  #list = byId("pictures", HTMLUListElement);
  #complaint = byId("complaint", HTMLParagraphElement);
  #send = byId("send", HTMLButtonElement);
  #stop = byId("stop", HTMLButtonElement);

  /** @param {{onSend: (text: string, pictures: Picture[]) => boolean, onStop: () => void}} actions `onSend` returns whether it was sent */
  constructor({ onSend, onStop }) {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#isAwaited = this.#reading > 0;
      if (this.#isAwaited) return;
      const text = this.#text.value.trim();
      const isSent = (text || this.pictures.length) && onSend(text, this.pictures);
      if (isSent) this.#put("", []);
    });
    this.#text.addEventListener("input", () => this.#fit());
    this.#text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || isForInputMethod(event)) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    this.#stop.addEventListener("click", onStop);
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !isForInputMethod(event)) onStop();
    });
    byId("attach", HTMLButtonElement).addEventListener("click", () => this.#files.click());
    this.#files.addEventListener("change", () => {
      this.add(this.#files.files ?? []);
      this.#files.value = "";
    });
    this.#listenForPictures();
  }

  /**
   * Put a question before what is being written, so that neither is lost.
   * @param {string} text
   * @param {Picture[]} pictures
   */
  recall(text, pictures) {
    this.#isAwaited = false; // it is to be changed first
    const texts = [text, this.#text.value].filter((part) => part.trim());
    this.#put(texts.join("\n"), [...pictures, ...this.pictures]);
  }

  /** @param {string} text @param {Picture[]} pictures */
  #put(text, pictures) {
    this.#text.value = text;
    this.pictures = pictures;
    this.complain("");
    this.#showPictures();
    this.#fit();
  }

  /** @param {boolean} isBusy */
  setBusy(isBusy) {
    const hadFocus = document.activeElement === (isBusy ? this.#send : this.#stop);
    this.#send.hidden = isBusy;
    this.#stop.hidden = !isBusy;
    if (hadFocus) (isBusy ? this.#stop : this.#text).focus();
  }

  focus() {
    this.#text.focus();
  }

  /** For when the button that asked is gone: unlike the field, this opens no keyboard over the answer on a phone. */
  focusStop() {
    this.#stop.focus();
  }

  /** @param {string} text */
  complain(text) {
    this.#complaint.textContent = text;
  }

  /** @param {Iterable<File>} files */
  async add(files) {
    const [right, wrong] = [/** @type {File[]} */ ([]), /** @type {File[]} */ ([])];
    for (const file of files) (TYPES.includes(file.type) ? right : wrong).push(file);
    if (!this.#reading) this.complain("");
    if (wrong.length) this.#complainToo(`Only PNG, JPEG, WebP and GIF pictures are supported, not ${namesOf(wrong)}.`);
    this.#reading += 1;
    const results = await Promise.allSettled(right.map(dataUrl));
    this.#reading -= 1;
    // From here on nothing waits, or it would undo what happens to the list meanwhile.
    /** @type {File[]} */
    const unread = [];
    results.forEach((result, i) => {
      if (result.status === "rejected") unread.push(right[i]);
      else this.pictures = [...this.pictures, { name: right[i].name, url: result.value }];
    });
    if (unread.length) this.#complainToo(`Files that could not be read: ${namesOf(unread)}.`);
    this.#isAwaited &&= !unread.length;
    this.#showPictures();
    this.focus();
    if (this.#isAwaited && !this.#reading) this.#form.requestSubmit();
  }

  /** @param {string} text */
  #complainToo(text) {
    this.complain(`${this.#complaint.textContent} ${text}`.trim());
  }

  #listenForPictures() {
    const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") ?? false;
    document.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) document.body.classList.remove("dropping");
    });
    document.addEventListener("drop", (event) => {
      document.body.classList.remove("dropping");
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.add(event.dataTransfer?.files ?? []);
    });
    document.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      const lines = event.clipboardData?.getData("text/plain").split(/[\r\n]+/).filter(Boolean) ?? [];
      // Office programs copy text together with a picture of it, browsers and file managers a picture together
      // with its address or name.
      const isAddress = (/** @type {string} */ line) => /^(\w+:\/\/|\/)\S*$/.test(line);
      const isText = lines.some((line) => !isAddress(line) && !files.some((file) => file.name === line));
      if (isText || !files.length) return;
      event.preventDefault();
      this.add(files);
    });
  }

  #showPictures() {
    this.#list.replaceChildren(
      ...this.pictures.map((picture) => {
        const remove = () => {
          this.pictures = this.pictures.filter((other) => other !== picture);
          this.#showPictures();
          this.focus();
        };
        const label = `Remove ${picture.name}`;
        const button = el("button", { type: "button", "aria-label": label, title: label, click: remove }, "×");
        return el("li", {}, el("img", { src: picture.url, alt: picture.name }), button);
      }),
    );
  }

  /** Make the field as high as its text, up to what the style allows. */
  #fit() {
    this.#text.style.height = "auto";
    this.#text.style.height = `${this.#text.scrollHeight + 2}px`;
  }
}

/** @param {File[]} files */
function namesOf(files) {
  return files.map((file) => file.name).join(", ");
}

/**
 * Whether an input method takes this key, to confirm or dismiss what it proposes. Safari tells only by the code, as it
 * ends the composition first.
 * @param {KeyboardEvent} event
 */
function isForInputMethod(event) {
  return event.isComposing || event.keyCode === 229;
}

/** @param {Blob} blob @returns {Promise<string>} */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
