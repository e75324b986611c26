// Status: the models in service, what their queues do, and what was answered.
import { ask, forgetKey, hasKey } from "./ask.js";
import { byId, make, say } from "./dom.js";

const [said, forget] = ["status-said", "forget"].map(byId);

/** The server's state for the header; true if it answers requests. */
export async function state() {
  const line = byId("state");
  try {
    const { state: found, version } = await ask("health");
    line.dataset.state = found;
    line.textContent = `${found} · ${version}`;
    return found === "ready";
  } catch {
    line.dataset.state = "gone";
    line.textContent = "not reachable";
    return false;
  }
}

/** Show the models, and the counts as they are now. */
export async function show(models) {
  forget.hidden = !hasKey();
  forget.onclick = () => {
    forgetKey();
    location.reload();
  };
  try {
    const counts = parse(await ask("metrics"));
    byId("models").replaceChildren(...models.map((one) => card(one, counts)));
    byId("requests").replaceChildren(requests(counts));
    say(said);
  } catch (error) {
    say(said, error);
  }
}

/** Prometheus' text: [{name, labels, value}]. */
function parse(text) {
  return [...text.matchAll(/^(\w+)(?:\{(.*)\})? (\S+)$/gm)].map(([, name, labels, value]) => ({
    name: name.replace(/^jina_local_/, ""),
    labels: Object.fromEntries([...(labels ?? "").matchAll(/(\w+)="([^"]*)"/g)].map(([, key, of]) => [key, of])),
    value: Number(value),
  }));
}

function card(model, counts) {
  const count = (name) => counts.find((one) => one.name === name && one.labels.model === model.id)?.value ?? 0;
  const number = (value) => Math.round(value).toLocaleString("en");
  const rows = {
    Weights: `${model.weights} on ${model.backend} (${model.device})`,
    Tasks: model.tasks.join(", "),
    Dimensions: model.dimensions.join(", ") || "none",
    Context: `${number(model.max_tokens)} tokens, pooling ${model.pooling}`,
    Licence: model.license,
    Digest: make("code", { title: model.digest }, model.digest.slice(0, 16)),
    "In the queue": `${number(count("queued_tokens"))} tokens`,
    Speed: `${number(count("tokens_per_second"))} tokens a second`,
    Done: `${number(count("texts_total"))} texts, ${number(count("tokens_total"))} tokens in ${number(count("passes_total"))} passes`,
  };
  return make("article", {}, make("h3", {}, model.id, make("span", { class: "quiet" }, ` ${model.kind}`)),
    make("dl", {}, Object.entries(rows).map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]).flat()));
}

function requests(counts) {
  const total = counts.filter((one) => one.name === "requests_total");
  const mean = (route) => {
    const of = (what) => counts.find((one) => one.name === `request_seconds_${what}` && one.labels.route === route)?.value;
    return `${((1000 * of("sum")) / of("count")).toFixed(1)} ms`;
  };
  const underWay = counts.find((one) => one.name === "requests_under_way")?.value ?? 0;
  const head = ["Path", "Status", "Answers", "Mean of the path"].map((text) => make("th", { scope: "col" }, text));
  const rows = total.map(({ labels, value }) => make("tr", {},
    make("td", {}, make("code", {}, labels.route)), make("td", {}, labels.status), make("td", {}, String(value)),
    make("td", {}, mean(labels.route))));
  return make("div", {}, make("p", {}, `${underWay} under way`),
    rows.length ? make("table", { class: "plain" }, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows)) : "");
}
