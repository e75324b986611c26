// Status: the models in service, what their queues do, and what was answered.
import { ask } from "./ask.js";
import { byId, make } from "./dom.js";

/** Say the server's state in the page's header; true if requests are answered. */
export async function isReady() {
  const { state, version } = await ask("health").catch(() => ({ state: "not reachable", version: "" }));
  byId("state").dataset.state = state;
  byId("state").textContent = `${state} ${version}`;
  return state === "ready";
}

/** Show the models, and the counts as they are now. */
export async function show(models) {
  const counts = parse(await ask("metrics"));
  byId("models").replaceChildren(...models.map((one) => card(one, counts)));
  byId("requests").replaceChildren(...requests(counts));
}

/** Prometheus' text as a function from a name and a label's value to the counts that fit. */
function parse(text) {
  const all = [...text.matchAll(/^jina_local_(\w+)(?:\{(.*)\})? (\S+)$/gm)].map(([, name, labels, value]) => {
    const pairs = [...(labels ?? "").matchAll(/(\w+)="([^"]*)"/g)].map(([, key, of]) => [key, of]);
    return { name, value: Number(value), ...Object.fromEntries(pairs.map(([key, of]) => [`of_${key}`, of])) };
  });
  return (name, label, of) => all.filter((one) => one.name === name && (!label || one[`of_${label}`] === of));
}

function card(model, counts) {
  const number = (value) => Math.round(value).toLocaleString("en");
  const count = (name) => number(counts(name, "model", model.id)[0]?.value ?? 0);
  const rows = {
    Weights: `${model.weights} on ${model.backend} (${model.device})`,
    Tasks: model.tasks.join(", "),
    Dimensions: model.dimensions.join(", ") || "none",
    Context: `${number(model.max_tokens)} tokens, pooling ${model.pooling}`,
    Licence: model.license,
    Digest: make("code", { title: model.digest }, model.digest.slice(0, 16)),
    "In the queue": `${count("queued_tokens")} tokens`,
    Speed: `${count("tokens_per_second")} tokens a second`,
    Done: `${count("texts_total")} texts, ${count("tokens_total")} tokens, ${count("passes_total")} passes`,
  };
  return make("article", {}, make("h3", {}, model.id, make("span", { class: "quiet" }, ` ${model.kind}`)),
    make("dl", {}, Object.entries(rows).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])));
}

function requests(counts) {
  const mean = (route) => {
    const [sum, count] = ["sum", "count"].map((of) => counts(`request_seconds_${of}`, "route", route)[0].value);
    return `${((1000 * sum) / count).toFixed(1)} ms`;
  };
  const line = (tag, cells) => make("tr", {}, cells.map((cell) => make(tag, {}, cell)));
  return [
    make("p", {}, `${counts("requests_under_way")[0].value} under way`),
    make("table", { class: "plain" },
      make("thead", {}, line("th", ["Path", "Status", "Answers", "Mean of the path"])),
      make("tbody", {}, counts("requests_total").map(({ of_route: route, of_status: status, value }) =>
        line("td", [make("code", {}, route), status, `${value}`, mean(route)])))),
  ];
}
