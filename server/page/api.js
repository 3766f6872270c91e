/** The client of the server's API. URLs are relative to the page's own, whatever prefix a proxy has added. */

import { load, save } from "./store.js";

const ROOT = new URL("../", import.meta.url);
const KEY = "specvlm.key";

/** An error with a message for people. `status` 0: there was no response. */
export class ApiError extends Error {
  /** @param {number} status @param {string} message @param {string} [code] */
  constructor(status, message, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export class Api {
  /** Asks the user for a key; true if there is one to try. The argument: whether the server rejected the last one. */
  #askKey;

  /** @param {(refused: boolean) => Promise<boolean>} askKey */
  constructor(askKey) {
    this.#askKey = askKey;
  }

  /** Kept by this tab alone, until it is closed. */
  get key() {
    return load(KEY) ?? "";
  }

  set key(key) {
    save(KEY, key || null);
  }

  /** @param {string} path @param {boolean} [asks] for a key where one is needed @returns {Promise<Response>} */
  async get(path, asks = false) {
    return this.#answered(path, {}, asks);
  }

  /**
   * The chunks of an answer, as they come. Throws ApiError, also where a stream ends early.
   * @param {object} body
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<import("./answer.js").Chunk>}
   */
  async *chat(body, signal) {
    const headers = { "Content-Type": "application/json" };
    const asked = { method: "POST", headers, body: JSON.stringify(body), signal };
    const response = await this.#answered("v1/chat/completions", asked, true);
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(response.status, chunk.error.message, chunk.error.code);
      yield chunk;
    }
    throw new ApiError(0, "The connection was lost in the middle of the answer.", "cut_off");
  }

  /** @param {string} path @param {RequestInit} init @param {boolean} asks */
  async #answered(path, init, asks) {
    for (;;) {
      const response = await this.#once(path, init);
      if (response.ok) return response;
      const error = await failure(response);
      if (!asks || error.status !== 401 || !(await this.#askKey(this.key !== ""))) throw error;
    }
  }

  /** @param {string} path @param {RequestInit} init */
  async #once(path, init) {
    const headers = new Headers(init.headers);
    // A header is bytes, one per character: others make `set` throw.
    if (this.key) headers.set("Authorization", `Bearer ${String.fromCharCode(...new TextEncoder().encode(this.key))}`);
    try {
      return await fetch(new URL(path, ROOT), { ...init, headers });
    } catch (error) {
      throw reachable(error);
    }
  }
}

/** @param {unknown} error thrown by fetch or a reader: an abort comes from the user, anything else from the network */
function reachable(error) {
  if (error instanceof DOMException && error.name === "AbortError") return error;
  return new ApiError(0, "The server cannot be reached. Is it running?", "unreachable");
}

/** An error in the server's form, or in any other: that of a proxy. @param {Response} response */
async function failure(response) {
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered with status ${response.status}.`;
  return new ApiError(response.status, message, body?.error?.code ?? "");
}

/** The data of server-sent events, one line each. @param {Response} response @returns {AsyncGenerator<string>} */
async function* events(response) {
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw reachable(error);
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice("data: ".length).trimEnd();
  }
}
