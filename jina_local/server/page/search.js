// Search: a question in, passages with their files and lines out, the question's words marked.
import { ask } from "./ask.js";
import { byId, fill, make, say } from "./dom.js";

const [form, question, hits, said] = ["search-form", "question", "hits", "search-said"].map(byId);
let underWay = new AbortController();

/** Show which indexes there are. */
export async function open() {
  form.onsubmit = (event) => {
    event.preventDefault();
    search();
  };
  form.onkeydown = (event) => {
    if (event.key === "ArrowDown" && event.target === question) move(event, 0);
  };
  hits.onkeydown = walk;
  try {
    const { data } = await ask("v1/indexes");
    fill(byId("index"), data.map((one) => one.name));
    byId("index-field").hidden = data.length < 2;
    byId("no-index").hidden = data.length > 0;
    for (const element of form.elements) element.disabled = data.length === 0;
  } catch (error) {
    say(said, error);
  }
}

async function search() {
  const query = question.value.trim();
  if (!query) return;
  underWay.abort();
  underWay = new AbortController();
  const began = performance.now();
  say(said, "Searching …");
  try {
    const body = { query, index: byId("index").value, k: Number(byId("k").value), mode: byId("mode").value };
    const answer = await ask("v1/search", body, underWay.signal);
    const words = pattern(query);
    hits.replaceChildren(...answer.hits.map((hit, n) => passage(hit, n, words)));
    const count = answer.hits.length === 1 ? "1 passage" : `${answer.hits.length || "No"} passages`;
    const mode = answer.mode && answer.mode !== body.mode ? `${answer.mode} search answered` : "";
    const time = `${Math.round(performance.now() - began)} ms`;
    say(said, [count, time, mode, ...(answer.missing ?? [])].filter(Boolean).join(" · "));
  } catch (error) {
    if (error.name === "AbortError") return;
    hits.replaceChildren();
    say(said, error);
  }
}

function passage(hit, n, words) {
  const [, folder, name] = hit.path.match(/^(.*[\\/])?([^]*)$/);
  const lines = hit.text.split("\n");
  const byLine = (hit.unit ?? "line") === "line";
  const [first, last] = [hit.start_line, hit.end_line];
  const place = byLine ? `:${first}-${last}` : ` ${hit.unit} ${first}${last > first ? `-${last}` : ""}`;
  const id = `passage-${n}`;
  const toggle = ({ currentTarget }) => {
    const open = currentTarget.getAttribute("aria-expanded") !== "true";
    currentTarget.setAttribute("aria-expanded", open);
  };
  return make("li", {},
    make("button", { class: "hit", "aria-expanded": "false", "aria-controls": id, title: hit.path, click: toggle },
      make("span", { class: "path" },
        make("span", { class: "quiet" }, folder ?? ""), make("b", {}, name), make("span", { class: "quiet" }, place)),
      hit.state ? make("em", {}, `${hit.state} since it was indexed`) : "",
      make("span", { class: "about" }, hit.context ?? ""),
      make("span", { class: "score", title: "score" }, hit.score.toFixed(2))),
    make("pre", { id, lang: hit.language },
      lines.map((line, i) => make("span", { class: "line", "data-line": byLine ? first + i : null },
        ...marked(line, words), "\n"))));
}

/** What begins as a word of the question does; short words count if there are no others, as on the command line. */
function pattern(query) {
  const all = query.match(/[\p{L}\p{N}]+/gu) ?? [];
  const long = all.filter((word) => word.length > 3 || /[^\x00-\x7f]/.test(word));
  const stems = (long.length ? long : all).map((word) => word.replace(/(?<=\w{4})(?:ing|ed|es|s|e)$/i, ""));
  if (!stems.length) return null;
  const parts = stems.map((stem) => (/^[\u2e80-\u9fff\u3040-\u30ff]/u.test(stem) ? stem : `(?<![\\p{L}\\p{N}])${stem}\\p{L}*`));
  return new RegExp(`(${parts.join("|")})`, "giu");
}

function marked(line, words) {
  if (words === null) return [line];
  return line.split(words).map((part, i) => (i % 2 ? make("mark", {}, part) : part));
}

function walk(event) {
  const buttons = [...hits.querySelectorAll(".hit")];
  const at = buttons.indexOf(event.target);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (at >= 0 && to !== undefined) move(event, to);
}

/** To a passage; above the first one is the question. */
function move(event, to) {
  const buttons = hits.querySelectorAll(".hit");
  if (to >= buttons.length) return;
  event.preventDefault();
  (to < 0 ? question : buttons[to]).focus();
}
