/** Assembles the page, and watches whether the server is available. */

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { Composer, dataUrl } from "./composer.js";
import { byId, number } from "./dom.js";
import { Inside } from "./inside.js";
import { KeyDialog } from "./key.js";
import { Settings } from "./settings.js";
import { Status } from "./status.js";
import { Tabs } from "./tabs.js";

const READY_MS = 10_000; // between two checks of the server
const WAITING_MS = 2_000;

const dialog = new KeyDialog();
/** @type {Api} */
const api = new Api((refused) => dialog.ask(api, refused));
const inside = new Inside();
const status = new Status(api);
const tabs = new Tabs((name) => status.show(name === "status"));
const settings = new Settings(() => tabs.show("settings"));
const composer = new Composer({ onSend: send, onStop: () => chat.stop() });
const chat = new Chat({
  ...{ api, settings, composer, inside },
  log: byId("log", HTMLElement),
  onLook: () => tabs.show("inside"),
});

/** @param {string} text @param {import("./composer.js").Picture[]} pictures */
function send(text, pictures) {
  const isSent = chat.send(text, pictures);
  if (isSent) byId("welcome", HTMLElement).hidden = true;
  return isSent;
}

byId("new-chat", HTMLButtonElement).addEventListener("click", () => {
  chat.reset();
  byId("welcome", HTMLElement).hidden = false;
  tabs.show("chat");
  composer.focus();
});

byId("examples", HTMLElement).addEventListener("click", async (event) => {
  if (!(event.target instanceof HTMLButtonElement)) return;
  const question = event.target.textContent ?? "";
  const url = await readExample().catch(() => "");
  composer.complain(url ? "" : "The example picture cannot be loaded.");
  if (url && send(question, [{ name: "example.png", url }])) composer.focusStop();
});

async function readExample() {
  const response = await fetch(byId("example", HTMLImageElement).src);
  if (!response.ok) throw new Error(response.statusText);
  return dataUrl(await response.blob());
}

const colour = byId("colour", HTMLInputElement);
colour.addEventListener("change", () => document.body.classList.toggle("coloured", colour.checked));
document.body.classList.toggle("coloured", colour.checked);

byId("give-key", HTMLButtonElement).addEventListener("click", () => {
  asksForKey = true;
  watch();
});

/** @param {"ready" | "loading" | "locked" | "away"} state @param {string} text */
function showServer(state, text) {
  byId("server-state", HTMLElement).className = state;
  byId("server-state-text", HTMLElement).textContent = text;
  byId("give-key", HTMLButtonElement).hidden = state !== "locked";
}

/** Ask what is served and how, once the model is loaded. @returns {Promise<string>} the model's name */
async function meet() {
  const { data: models } = await (await api.get("v1/models", asksForKey)).json();
  const { version, speculative } = await (await api.get("version")).json();
  settings.setModels(models);
  settings.setDrafting(speculative.num_draft_tokens, speculative.compressors);
  status.setServer([
    ["model", models.map((/** @type {{id: string}} */ model) => model.id).join(", ")],
    ["context length", `${number(models[0].max_model_len)} tokens`],
    ["draft", speculative.draft],
    ["largest tree", `${speculative.num_draft_tokens} draft tokens, ${speculative.num_steps} levels`],
    ["version", version],
  ]);
  return models[0].id;
}

let model = "";
let asksForKey = true; // until the user declines to enter one
let timer = 0;

/** Check whether the server is ready, now and repeatedly. */
async function watch() {
  clearTimeout(timer);
  try {
    await api.get("ready");
    model ||= await meet();
    showServer("ready", model);
  } catch (error) {
    const { status } = /** @type {import("./api.js").ApiError} */ (error);
    if (status === 401) showServer("locked", "This server requires a key");
    else if (status === 503) showServer("loading", "The model is loading…");
    else showServer("away", "The server cannot be reached");
    asksForKey &&= status !== 401;
    model = "";
  }
  timer = setTimeout(watch, model ? READY_MS : WAITING_MS);
}

byId("boot", HTMLElement).remove();
byId("app", HTMLElement).hidden = false;
if (tabs.isWide) composer.focus(); // on a phone this would open the keyboard
watch();
