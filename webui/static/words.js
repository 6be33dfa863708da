/**
 * What the scripts say, in the language of the page. English stands in the code and is the key of
 * the other language's sentence, which the page fetches once. Values take the places of %(name)s.
 */
const { words } = document.documentElement.dataset;

/** @type {Map<string, string>} */
const sentences = new Map(words === undefined ? [] : Object.entries(await fetched(words)));

/**
 * A sentence.
 * @param {string} text
 * @param {Record<string, string | number>} [values]
 */
export function _(text, values = {}) {
  return filled(sentences.get(text) ?? text, values);
}

/**
 * A sentence that differs with a number, %(num)s.
 * @param {string} one
 * @param {string} many
 * @param {number} num
 * @param {Record<string, string | number>} [values]
 */
export function _n(one, many, num, values = {}) {
  return filled(sentences.get(one) ?? (num === 1 ? one : many), { num, ...values });
}

/** @param {string} text @param {Record<string, string | number>} values */
function filled(text, values) {
  return text.replace(/%\((\w+)\)s/g, (_place, name) => String(values[name]));
}

/** @param {string} url @returns {Promise<Record<string, string>>} */
async function fetched(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: status ${response.status}`);
  return response.json();
}
