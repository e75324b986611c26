// Search: a question in, passages with their files and lines out, the question's words marked.
import { ask } from "./ask.js";
import { byId, fill, make, onSubmit } from "./dom.js";

const [form, question, hits] = ["search-form", "question", "hits"].map(byId);

/** Offer the indexes that there are. */
export async function open() {
  const { data } = await ask("v1/indexes");
  fill(byId("index"), data.map((one) => one.id));
  byId("index-field").hidden = data.length < 2;
  byId("no-index").hidden = data.length > 0;
  onSubmit(form, byId("search-said"), search);
  for (const element of form.elements) element.disabled = data.length === 0;
  byId("search").addEventListener("keydown", walk);
}

async function search(signal) {
  const [query, index, mode, k] = ["question", "index", "mode", "k"].map((id) => byId(id).value.trim());
  if (!query) throw new Error("Give a question.");
  hits.replaceChildren();
  const answer = await ask("v1/search", { query, index, mode, k: Number(k) }, signal);
  const words = pattern(query);
  hits.replaceChildren(...answer.hits.map((hit, n) => passage(hit, `passage-${n}`, words)));
  for (const text of hits.querySelectorAll("pre")) text.classList.toggle("long", text.scrollHeight > text.clientHeight);
  const count = answer.hits.length || "no";
  const other = answer.mode && answer.mode !== mode ? [`${answer.mode} search answered`] : [];
  return [`${count} passage${count === 1 ? "" : "s"}`, ...other, ...(answer.missing ?? [])];
}

function passage(hit, id, words) {
  const [, folder, name] = hit.path.match(/^(.*[\\/])?([^]*)$/);
  const [first, last, unit] = [hit.start_line, hit.end_line, hit.unit ?? "line"];
  const lines = hit.text.split("\n").map((line, i) =>
    make("span", { class: "line", "data-line": unit === "line" ? first + i : null }, ...marked(line, words), "\n"));
  const unfold = ({ currentTarget: button }) =>
    button.setAttribute("aria-expanded", button.getAttribute("aria-expanded") === "false");
  return make("li", {},
    make("button", { class: "hit", "aria-expanded": "false", "aria-controls": id, title: hit.path, click: unfold },
      make("span", { class: "path" }, make("span", { class: "quiet" }, folder ?? ""), make("b", {}, name),
        make("span", { class: "quiet place" }, unit === "line" ? `:${first}-${last}` : ` ${unit} ${first}-${last}`)),
      make("span", { class: "about" }, [hit.context, hit.state && `${hit.state} since`].filter(Boolean).join(" · ")),
      make("span", { class: "score" }, hit.score.toFixed(2))),
    make("pre", { id }, lines));
}

/** What begins as a word of the question does. Short words count if there are no others, as on the command line. */
function pattern(query) {
  const all = query.match(/[\p{L}\p{N}]+/gu) ?? [];
  const long = all.filter((word) => word.length > 3 || /\P{ASCII}/u.test(word));
  const parts = (long.length ? long : all).map((word) => {
    const stem = word.replace(/(?<=\w{4})(ing|ed|es|s|e)$/i, "");
    return /^\p{Script=Latin}/u.test(word) ? `(?<![\\p{L}\\p{N}])${stem}\\p{L}*` : stem;
  });
  return new RegExp(`(${parts.join("|") || "$^"})`, "giu");
}

/** The parts of a line; those at odd places are what the pattern has caught. */
const marked = (line, words) => line.split(words).map((part, i) => (i % 2 ? make("mark", {}, part) : part));

/** Arrows go from the question to the passages and back. */
function walk(event) {
  const stops = [question, ...hits.querySelectorAll(".hit")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const next = stops[stops.indexOf(event.target) + step];
  if (!stops.includes(event.target) || !next) return;
  event.preventDefault();
  next.focus();
}
