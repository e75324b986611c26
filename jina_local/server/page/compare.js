// Compare: the same texts under several tasks and prompts, their cosines side by side, and their vectors as files.
import { ask } from "./ask.js";
import { byId, fill, make, say } from "./dom.js";
import { cosines, FORMATS } from "./vectors.js";

const MOST_TEXTS = 40; // in a map
const [form, texts, model, dimensions] = ["compare-form", "texts", "model", "dimensions"].map(byId);
const [sides, maps, files, said] = ["sides", "maps", "vectors", "compare-said"].map(byId);
const readout = byId("cell").querySelector("output");
let underWay = new AbortController();

/** Take the models that embed. */
export function open(models) {
  const embedding = models.filter((one) => one.kind === "embedding");
  const choose = () => {
    const chosen = embedding.find((one) => one.id === model.value);
    fill(dimensions, chosen.dimensions, chosen.dimensions.at(-1));
    offer(chosen);
  };
  fill(model, embedding.map((one) => one.id));
  if (embedding.length) choose();
  else say(said, "No embedding model is in service.");
  model.onchange = choose;
  form.onsubmit = (event) => {
    event.preventDefault();
    compare();
  };
  texts.onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  };
}

/** The maps that make sense: a side with itself, and the two sides of a search with each other. */
function choices(chosen) {
  const pairs = [["query", "document"], ["query", "passage"]];
  const found = [];
  for (const group of new Set(chosen.tasks.map((task) => task.split(".")[0]))) {
    const tasks = chosen.tasks.filter((task) => task.split(".")[0] === group);
    const all = chosen.prompts.length
      ? chosen.prompts.map((name) => ({ name, body: { task: group, prompt_name: name } }))
      : tasks.map((task) => ({ name: task.split(".")[1] ?? "", body: { task } }));
    const of = Object.fromEntries(all.map((side) => [side.name, { ...side, label: `${group} ${side.name}`.trim() }]));
    const both = pairs.filter(([a, b]) => of[a] && of[b]).map(([a, b]) => [of[a], of[b]]);
    const maps = [...both, ...Object.values(of).reverse().map((side) => [side, side])];
    found.push({ group, maps: maps.map(([a, b]) => ({ a, b, name: a === b ? a.name : `${a.name} → ${b.name}` })) });
  }
  return found;
}

function offer(chosen) {
  const rows = choices(chosen).map(({ group, maps: some }, n) => make("div", { role: "group", "aria-label": group },
    make("span", { class: "task" }, group),
    some.map((map, i) => {
      const usual = n === 0 ? i === 0 : n === 1 && (map.name === "document" || some.length === 1);
      const box = make("input", { type: "checkbox", checked: usual });
      box.map = map;
      return make("label", {}, box, map.name || "on");
    })));
  sides.replaceChildren(sides.querySelector("legend"), ...rows);
}

async function compare() {
  const lines = texts.value.split("\n").map((line) => line.trim()).filter(Boolean);
  const wanted = [...sides.querySelectorAll("input:checked")].map((box) => box.map);
  if (!lines.length || !wanted.length) {
    say(said, new Error(lines.length ? "Choose a task." : "Give a text."));
    return;
  }
  underWay.abort();
  underWay = new AbortController();
  const began = performance.now();
  say(said, "Embedding …");
  try {
    const facts = { model: model.value, dimensions: Number(dimensions.value) };
    const needed = [...new Set(wanted.flatMap(({ a, b }) => [b, a]))];
    const vectors = new Map(await Promise.all(needed.map(async (side) => {
      const { data } = await ask("v1/embeddings", { ...facts, ...side.body, input: lines }, underWay.signal);
      return [side, data.map((one) => one.embedding)];
    })));
    const shown = lines.slice(0, MOST_TEXTS);
    maps.replaceChildren(...wanted.map(({ a, b, name }) => {
      const of = (side) => vectors.get(side).slice(0, MOST_TEXTS);
      return map(a === b ? a.label : `${a.label.split(" ")[0]} ${name}`, shown, cosines(of(a), of(b)));
    }));
    files.replaceChildren(...needed.map((side) => downloads({ ...facts, ...side.body }, side, lines, vectors.get(side))));
    byId("vectors-title").hidden = false;
    const more = lines.length > MOST_TEXTS ? ` · the maps show the first ${MOST_TEXTS}` : "";
    say(said, `${lines.length} texts · ${Math.round(performance.now() - began)} ms${more}`);
    readout.textContent = "Point at a square, or walk with the arrow keys.";
  } catch (error) {
    if (error.name !== "AbortError") say(said, error);
  }
}

/** A table of cosines. One of its squares is in the order of Tab; arrows move among them. */
function map(title, lines, values) {
  const cell = (value, i, j) => {
    const number = value.toFixed(4);
    const square = make("td", {
      role: "gridcell", tabindex: i + j ? -1 : 0, "data-value": number,
      "aria-label": `${number}, ${i + 1} ${lines[i]}, with ${j + 1} ${lines[j]}`,
    }, lines.length <= 12 ? value.toFixed(2) : "");
    square.style.setProperty("--cosine", Math.max(0, Math.min(1, value)));
    square.classList.toggle("high", value > 0.6);
    return square;
  };
  const header = lines.map((line, j) => make("th", { scope: "col", title: line }, String(j + 1)));
  const rows = values.map((row, i) => make("tr", {},
    make("th", { scope: "row", title: lines[i] }, make("span", {}, `${i + 1} ${lines[i]}`)),
    row.map((value, j) => cell(value, i, j))));
  const show = (event) => {
    const square = event.target.closest("td");
    if (square) readout.replaceChildren(make("b", {}, square.dataset.value), square.ariaLabel.slice(square.dataset.value.length));
  };
  return make("figure", {}, make("figcaption", {}, title),
    make("table", { role: "grid", "aria-label": `Cosines, ${title}`, mouseover: show, focusin: show, keydown: walk },
      make("thead", {}, make("tr", {}, make("td"), header)), make("tbody", {}, rows)));
}

function walk(event) {
  const square = event.target.closest("tbody td");
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!square || !step) return;
  event.preventDefault();
  const row = square.parentElement;
  const next = row.parentElement.rows[row.sectionRowIndex + step[0]]?.cells[square.cellIndex + step[1]];
  if (next?.tagName !== "TD") return;
  square.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function downloads(facts, side, lines, rows) {
  const save = (format) => {
    const url = URL.createObjectURL(FORMATS[format](facts, lines, rows));
    const name = `${facts.model}-${side.label.replaceAll(/[ .]/g, "-")}-${facts.dimensions}.${format}`;
    make("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  };
  return make("li", {}, make("span", {}, `${side.label} (${rows.length} × ${facts.dimensions})`),
    Object.keys(FORMATS).map((format) =>
      make("button", { "aria-label": `${side.label} as ${format}`, click: () => save(format) }, format)));
}
