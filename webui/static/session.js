/**
 * The lock of a page that was left: after a while without a key or the pointer the page goes black
 * and asks for the password in place. Nothing of the page is lost by it, what was drawn, typed or
 * marked, for the page stays where it is.
 *
 * All requests of a page go through here. One that meets a locked or ended session waits for the
 * password and is sent again, so that what was confirmed just then is confirmed. Who signs in at another
 * server leaves the page, and what they were confirming is not. What a page changes
 * is marked with the account for which it was made: another person who signed in meanwhile, in
 * another tab, does not get it.
 */
import { element } from "./dom.js";
import { _ } from "./words.js";

/** How often a page says that somebody is there; a fraction of what a session lasts without. */
const SAID_EVERY_MS = 30_000;
const RETRY_MS = 5000;
const STATE = "/api/session";
const ACTIVE = "/api/session/active";
const NO_CONNECTION = _("No connection. Try again.");

const send = window.fetch.bind(window);
const { account, name, external, idle } = /** @type {Record<string, string>} */ (document.body.dataset);

/** The token that the server takes now, if it is another one than the page came with. @type {string | null} */
let token = null;
/** @type {Promise<void> | null} */
let unlocking = null;
let saidAt = 0;
let used = false;

if (account !== undefined) {
  window.fetch = watched;
  for (const kind of ["keydown", "pointerdown", "pointermove", "wheel", "touchstart"]) {
    addEventListener(kind, noteUse, { capture: true, passive: true });
  }
  lookAfter(Number(idle) * 1000);
}

/**
 * @param {RequestInfo | URL} input
 * @param {RequestInit} [init]
 * @returns {Promise<Response>}
 */
async function watched(input, init) {
  for (;;) {
    const response = await send(input, changing(init) ? signed(/** @type {RequestInit} */ (init)) : init);
    // An upload's stream cannot be sent twice.
    if (response.status !== 401 || init?.body instanceof ReadableStream) return response;
    await lock();
  }
}

/** @param {RequestInit | undefined} init */
function changing(init) {
  return init?.method !== undefined && !["GET", "HEAD"].includes(init.method.toUpperCase());
}

/** @param {RequestInit} init @returns {RequestInit} */
function signed(init) {
  const headers = new Headers(init.headers);
  headers.set("X-Account", account);
  if (token !== null && headers.has("X-CSRFToken")) headers.set("X-CSRFToken", token);
  return { ...init, headers };
}

/** Somebody is there. */
function noteUse() {
  used = true;
  if (unlocking !== null || performance.now() - saidAt < SAID_EVERY_MS) return;
  saidAt = performance.now();
  used = false;
  say().catch((error) => console.warn(error)); // the next use says it again
}

async function say() {
  const { csrf_token } = await state();
  await watched(ACTIVE, { method: "POST", headers: { "X-CSRFToken": csrf_token } });
}

/** @returns {Promise<{ account_id: number | null, seconds_left: number, csrf_token: string }>} */
async function state() {
  const response = await send(STATE);
  if (!response.ok) throw new Error(`${STATE}: status ${response.status}`);
  return response.json();
}

/**
 * Ask, when the time may be over, whether it is: another tab may have been used. In doubt it is.
 * @param {number} wait  milliseconds
 */
function lookAfter(wait) {
  setTimeout(async () => {
    let left = 0;
    try {
      if (used) await say();
      const now = await state();
      if (String(now.account_id) === account) left = now.seconds_left * 1000;
    } catch (error) {
      console.warn(error);
    }
    if (left <= 0) {
      await lock();
      left = Number(idle) * 1000;
    }
    lookAfter(Math.max(left, RETRY_MS / 5) + 100);
  }, wait);
}

/** Black the page out until the password was given; one lock, however many requests wait for it. */
function lock() {
  unlocking ??= ask().finally(() => {
    unlocking = null;
    saidAt = performance.now();
  });
  return unlocking;
}

/** @returns {Promise<void>} */
function ask() {
  return new Promise((resolve) => {
    const title = document.title;
    const problem = element("p", { class: "problem", role: "alert" });
    const password = element("input", { id: "lock-password", type: "password", autocomplete: "current-password", required: "" });
    const open = element("button", { type: "submit", class: "primary", text: _("Go on") });
    const here = encodeURIComponent(location.pathname + location.search);
    const other = element("a", { href: `/sign-in?next=${here}`, text: external === undefined ? _("Sign in as somebody else") : _("Sign in again") });
    const form = element("form", { class: "stacked" },
      element("h2", { id: "lock-title", text: _("Locked") }),
      element("p", { text: external === undefined ? _("Everything is where you left it. Give your password to go on.") : _("What you marked is kept. What you were just confirming is not confirmed. Sign in again to go on.") }),
      element("p", { class: "who", text: name }),
      problem,
      ...(external === undefined ? [element("label", { for: "lock-password", text: _("Password") }), password, open] : []),
      other);
    const dialog = element("dialog", { class: "lock", "aria-labelledby": "lock-title" }, form);
    let locked = true;

    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => { // a browser closes a dialog at the second Escape
      if (locked) dialog.showModal();
    });
    for (const kind of ["keydown", "keyup", "keypress", "wheel", "pointerdown"]) {
      dialog.addEventListener(kind, (event) => event.stopPropagation()); // no key of the viewer's
    }
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      open.disabled = true;
      problem.textContent = await unlocked(password.value);
      open.disabled = false;
      password.value = "";
      if (problem.textContent !== "") {
        password.focus();
        return;
      }
      locked = false;
      dialog.close();
      dialog.remove();
      document.documentElement.classList.remove("locked");
      document.title = title;
      resolve();
    });

    document.title = _("Locked") + " · Chest CT"; // the title names the patient
    document.documentElement.classList.add("locked");
    document.body.append(dialog);
    dialog.showModal();
    password.focus();
  });
}

/**
 * Open the session again; "" when it is open, else what went wrong.
 * @param {string} password
 */
async function unlocked(password) {
  try {
    const { csrf_token } = await state();
    const response = await send(STATE, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRFToken": csrf_token },
      body: JSON.stringify({ account_id: Number(account), password }),
    });
    const said = await response.json();
    if (!response.ok) return said.error;
    token = said.csrf_token;
    return "";
  } catch (error) {
    console.warn(error);
    return NO_CONNECTION;
  }
}
