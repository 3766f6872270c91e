/**
 * Creates elements from text and attributes. Nothing here parses HTML: what a user or a model wrote only ever
 * becomes text. (In browsers with Trusted Types, the page's policy enforces this.)
 */

const SVG = "http://www.w3.org/2000/svg";

/** @typedef {Record<string, string | number | boolean | ((event: any) => void)>} Attributes */

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Attributes} [attributes] a function is a listener for the event of that name; false leaves one out
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag
 * @param {Attributes} [attributes]
 * @param {...(Node | string)} children
 * @returns {SVGElementTagNameMap[K]}
 */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * @template {Element} T
 * @param {T} element
 * @param {Attributes} attributes
 * @param {(Node | string)[]} children
 */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} type
 * @returns {T}
 */
export function byId(id, type) {
  const found = document.getElementById(id);
  if (found instanceof type) return found;
  throw new Error(`the page has no ${type.name} with the id ${id}`);
}

/**
 * Show names and their values in a `<dl class="figures">`.
 * @param {HTMLElement} list
 * @param {[name: string, value: string, hint?: string][]} rows
 */
export function showFigures(list, rows) {
  list.replaceChildren(
    ...rows.map(([name, value, hint = ""]) =>
      el("div", { title: hint }, el("dt", {}, name), el("dd", {}, value)),
    ),
  );
}

/** @param {number | null | undefined} value @param {number} [digits] */
export function number(value, digits = 0) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

/** @param {number} value */
export function seconds(value) {
  return Number.isNaN(value) ? "–" : `${number(value, 2)} s`;
}

/** @param {number | null | undefined} share 0 to 1 */
export function percent(share) {
  return share === null || share === undefined || Number.isNaN(share) ? "–" : `${number(share * 100)} %`;
}

/**
 * A share as a bar, under its name.
 * @param {string} name
 * @param {number} share 0 to 1; NaN if it is undefined
 */
export function meter(name, share) {
  const bar = el("div");
  bar.style.width = `${(share || 0) * 100}%`;
  const aria = { role: "meter", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": share || 0 };
  const title = el("p", {}, el("span", {}, name), el("span", {}, percent(share)));
  return el("div", { class: "meter" }, title, el("div", { ...aria, "aria-valuetext": percent(share) }, bar));
}
