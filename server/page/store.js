/**
 * What this tab alone keeps, until it is closed. Where the browser blocks site data, any access to its store throws:
 * then the values last until the page is left.
 */

/** @type {Map<string, string | null>} */
const values = new Map();

/** @param {string} name @returns {string | null} null: nothing is kept */
export function load(name) {
  if (!values.has(name)) values.set(name, ifAllowed(() => sessionStorage.getItem(name)) ?? null);
  return values.get(name) ?? null;
}

/** @param {string} name @param {string | null} value null: keep it no longer */
export function save(name, value) {
  values.set(name, value);
  ifAllowed(() => (value === null ? sessionStorage.removeItem(name) : sessionStorage.setItem(name, value)));
}

/** @template T @param {() => T} access @returns {T | undefined} */
function ifAllowed(access) {
  try {
    return access();
  } catch {
    return undefined;
  }
}
