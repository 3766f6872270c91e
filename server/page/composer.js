/** The message editor: text, and pictures that are dropped, pasted or chosen. */

import { byId, el } from "./dom.js";

/** A picture in a message. @typedef {{name: string, url: string}} Picture `url` begins with `data:` */

const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];

export class Composer {
  /** @type {Picture[]} */
  pictures = [];
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
      const text = this.#text.value.trim();
      const isSent = (text || this.pictures.length) && onSend(text, this.pictures);
      if (isSent) this.put("", []);
    });
    this.#text.addEventListener("input", () => this.#fit());
    this.#text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    this.#stop.addEventListener("click", onStop);
    document.addEventListener("keydown", (event) => event.key === "Escape" && onStop());
    byId("attach", HTMLButtonElement).addEventListener("click", () => this.#files.click());
    this.#files.addEventListener("change", () => {
      this.add(this.#files.files ?? []);
      this.#files.value = "";
    });
    this.#listenForPictures();
  }

  /** @param {string} text @param {Picture[]} pictures */
  put(text, pictures) {
    this.#text.value = text;
    this.pictures = pictures;
    this.#complaint.textContent = "";
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

  /** @param {Iterable<File>} files */
  async add(files) {
    const all = [...files];
    const wrong = all.filter((file) => !TYPES.includes(file.type));
    const names = wrong.map((file) => file.name).join(", ");
    this.#complaint.textContent = names && `Only PNG, JPEG, WebP and GIF pictures are supported, not ${names}.`;
    for (const file of all.filter((file) => TYPES.includes(file.type))) {
      this.pictures = [...this.pictures, { name: file.name, url: await dataUrl(file) }];
    }
    this.#showPictures();
    this.focus();
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
      const files = event.clipboardData?.files ?? [];
      if (files.length) this.add(files);
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

/** @param {Blob} blob @returns {Promise<string>} */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
