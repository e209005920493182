/* The question form and its table of results. */

import { call } from "./api.js";
import { byId, el, note } from "./dom.js";

const milliseconds = (value) => `${value.toFixed(1)} ms`;

function question(form) {
  const fields = new FormData(form);
  return {
    index: fields.get("index").trim(),
    prompt: fields.get("prompt"),
    completion: fields.get("completion") || null, // then the model says one
    top_k: Number(fields.get("top_k")),
    direction: fields.get("direction"),
    include: ["text", "metadata", ...(fields.get("tokens") ? ["tokens"] : [])],
    verify: fields.get("verify") ? { top: 3, controls: 3 } : null,
  };
}

function scoreCell({ score, percentile, verified }, largest) {
  const share = largest > 0 ? Math.abs(score) / largest : 0;
  const fill = el("span", { className: score < 0 ? "fill negative" : "fill" });
  fill.style.width = `${(100 * share).toFixed(1)}%`;
  return el("td", { className: "score" },
    el("span", { className: "number", textContent: score.toFixed(4) }),
    el("span", { className: "track", attributes: { "aria-hidden": "true" } }, fill),
    percentile === null || percentile === undefined ? null
      : el("span", { className: "faint", title: "Of random samples of the index, so many score lower", textContent: `above ${percentile.toFixed(2)} %` }),
    verified ? unlearned(verified) : null);
}

/* What a number changes by, with its sign; a step that broke the model has none. */
const change = (value) => (value === null ? "not finite" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}`);

const unlearned = ({ log_probability: byHowMuch }) =>
  el("span", { className: "faint", title: "Change of the completion's log-probability by one step of unlearning this sample alone", textContent: `unlearned: ${change(byHowMuch)}` });

/* Each token shaded by its part of the score: the more, the stronger. */
function heatStrip(tokens) {
  const largest = Math.max(...tokens.map((one) => Math.abs(one.influence)));
  return tokens.map(({ token, influence }) => {
    const part = el("span", { className: influence < 0 ? "token negative" : "token", title: influence.toFixed(4), textContent: token });
    part.style.setProperty("--share", `${largest > 0 ? (70 * Math.abs(influence) / largest).toFixed(0) : 0}%`);
    return part;
  });
}

function metadataCell(metadata) {
  const entries = Object.entries(metadata ?? {});
  const show = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return el("td", { className: "metadata" }, entries.map(([key, value]) =>
    el("span", { className: "chip" }, el("b", { textContent: key }), ` ${show(value)}`)));
}

function resultRow(row, largest) {
  return el("tr", {},
    el("td", { className: "number", textContent: row.rank }),
    scoreCell(row, largest),
    el("td", {}, el("code", { textContent: row.id })),
    el("td", { className: "text" }, row.tokens ? heatStrip(row.tokens) : [
      el("span", { textContent: row.prompt ?? "" }),
      row.completion ? el("mark", { textContent: row.completion }) : null]),
    metadataCell(row.metadata));
}

function table(caption, rows) {
  if (!rows.length) return note(`${caption}: none`);
  const largest = Math.max(...rows.map((row) => Math.abs(row.score)));
  const heads = ["#", "Score", "Id", "Training sample", "Metadata"];
  return el("div", { className: "scroll", tabIndex: 0, attributes: { role: "region", "aria-label": caption } },
    el("table", {},
      el("caption", { textContent: caption }),
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col", textContent: head })))),
      el("tbody", {}, rows.map((row) => resultRow(row, largest)))));
}

function controls({ mean, controls: drawn }) {
  const beside = mean === null ? "" : ` ${drawn.length} random ${drawn.length === 1 ? "sample" : "samples"}: ${change(mean.log_probability)} on average.`;
  return `The best were unlearned, each alone, and all weights put back; below is what that did to the log-probability of the completion.${beside}`;
}

function answerView(answer) {
  const { query, timing_ms: timing } = answer;
  const parts = [
    `generation ${answer.generation}`,
    `${query.n_tokens} ${query.n_tokens === 1 ? "token" : "tokens"} of completion, loss ${query.loss.toFixed(3)}`,
    `${milliseconds(timing.total)} (queue ${milliseconds(timing.queue)}, gradient ${milliseconds(timing.gradient)}, search ${milliseconds(timing.search)}${answer.verification ? `, unlearning ${milliseconds(timing.verify)}` : ""})`,
  ];
  return [
    el("p", { className: "asked" }, el("span", { textContent: query.prompt }), el("mark", { textContent: query.completion })),
    el("p", { className: "faint", textContent: parts.join(" · ") }),
    answer.notice ? note(`${answer.notice}: the best result stands out no more than for what no sample states`) : null,
    answer.verification ? note(controls(answer.verification)) : null,
    answer.results ? table("Made it more likely", answer.results) : null,
    answer.opponents ? table("Made it less likely", answer.opponents) : null,
  ].filter(Boolean);
}

/** Send the form to POST /attribute and show what comes back. */
export function setUpAsk() {
  const form = byId("ask");
  const output = byId("answer");
  const button = form.querySelector("button[type=submit]");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    output.setAttribute("aria-busy", "true");
    output.replaceChildren(note("Asking…"));
    try {
      const headers = { "Content-Type": "application/json" };
      const answer = await call("attribute", { method: "POST", headers, body: JSON.stringify(question(form)) });
      output.replaceChildren(...answerView(answer));
    } catch (error) {
      const request = error.requestId ? ` (request ${error.requestId})` : "";
      output.replaceChildren(note(`${error.title ?? "Failed"}: ${error.message}${request}`, "bad"));
    } finally {
      button.disabled = false;
      output.removeAttribute("aria-busy");
    }
  });
}
