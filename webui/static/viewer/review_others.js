/**
 * Who else has this result open, and who has begun to judge it.
 *
 * @typedef {import("./review_server.js").ReviewServer} ReviewServer
 */
import { element } from "../dom.js";
import { _ } from "../words.js";
import { RefusedError } from "./review_server.js";

/** A third of `webui.presence.GONE_AFTER_S`. */
const ASK_AGAIN_MS = 5000;

/** @param {ReviewServer} server */
export function othersHere(server) {
  const box = element("ul", { class: "others", role: "status", "aria-label": _("Other people at this result") });

  async function ask() {
    try {
      const { present, drafts } = await server.others();
      const began = new Set(drafts.map(({ name }) => name));
      const sentences = present.map((name) => (began.has(name) ? _("%(name)s is here and has begun a review.", { name }) : _("%(name)s is here.", { name })));
      for (const name of began) if (!present.includes(name)) sentences.push(_("%(name)s has begun a review.", { name }));
      show(sentences);
    } catch (error) {
      if (!(error instanceof RefusedError)) throw error;
      show([]); // who is there is not known; that the server is away, the review itself says
    }
    setTimeout(ask, ASK_AGAIN_MS);
  }

  /** A sentence that stays is not read out again. @param {readonly string[]} sentences */
  function show(sentences) {
    if (sentences.join("\n") === [...box.children].map(({ textContent }) => textContent).join("\n")) return;
    box.replaceChildren(...sentences.map((text) => element("li", { text })));
  }

  return { box, ask };
}
