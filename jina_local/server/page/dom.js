// Elements from plain values. Strings become text nodes, so that no text is ever read as markup.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** A new element: attributes (functions are listeners; null is left out), then children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat());
  return element;
}

/** Give a <select> its options. */
export const fill = (select, values) => select.replaceChildren(...values.map((value) => make("option", {}, value)));

/** Show a sentence or an error in a status line. */
export function say(line, said) {
  line.classList.toggle("error", said instanceof Error);
  line.textContent = said instanceof Error ? said.message : said;
}

/** Do the work of a form that is sent, from now on; of two, the first is given up. What goes wrong is said. */
export function onSubmit(form, line, work) {
  form.querySelector("button").disabled = false;
  let underWay = new AbortController();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    underWay.abort();
    underWay = new AbortController();
    const { signal } = underWay;
    const began = performance.now();
    try {
      say(line, "…");
      const facts = await work(signal);
      say(line, [...facts, `${Math.round(performance.now() - began)} ms`].join(" · "));
    } catch (error) {
      if (!signal.aborted) say(line, error);
    }
  });
}
