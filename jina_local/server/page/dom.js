// Elements from plain values. Strings become text nodes, so that no text is ever read as markup.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** A new element: attributes (functions are listeners, false and null are left out), then children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat());
  return element;
}

/** The options of a <select>, the first one or `chosen` selected. */
export function fill(select, values, chosen = values[0]) {
  select.replaceChildren(...values.map((value) => make("option", { selected: value === chosen }, String(value))));
}

/** Say something in a status line: nothing, a sentence, or an error. */
export function say(element, said = "") {
  element.classList.toggle("error", said instanceof Error);
  element.textContent = said instanceof Error ? said.message : said;
}
