/** The report's buttons: print, and copy as plain text, also where the page came over HTTP. */
import { byId } from "../dom.js";
import { _ } from "../words.js";

const text = /** @type {HTMLTextAreaElement} */ (byId("text"));

byId("print").addEventListener("click", () => print());
byId("copy").addEventListener("click", async () => {
  byId("copied").textContent = (await copy())
    ? _("The report is in the clipboard.")
    : _("The browser does not let the page copy: open “As plain text” and copy it there.");
});

/** @returns {Promise<boolean>} whether the text is in the clipboard */
async function copy() {
  // Only a page that came over HTTPS has a clipboard to write to.
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text.value);
      return true;
    } catch {
      return copySelected();
    }
  }
  return copySelected();
}

/** The old way: what is selected is copied. */
function copySelected() {
  const details = /** @type {HTMLDetailsElement} */ (text.closest("details"));
  const wasOpen = details.open;
  details.open = true;
  text.select();
  const done = document.execCommand("copy");
  text.setSelectionRange(0, 0);
  details.open = wasOpen;
  byId("copy").focus();
  return done;
}
