/* The form for a query, and the table of its results. */

import { call } from "./api.js";
import { byId, el, note } from "./dom.js";

const NOTICE_MEANING = "the best result stands out no more than it would for a completion that no document states";

const formatMs = (value) => `${value.toFixed(1)} ms`;

function readQuery(form) {
  const fields = new FormData(form);
  return {
    index: fields.get("index").trim(),
    prompt: fields.get("prompt"),
    completion: fields.get("completion") || null, // null lets the model generate one
    top_k: Number(fields.get("top_k")),
    direction: fields.get("direction"),
    include: ["text", "metadata", ...(fields.get("tokens") ? ["tokens"] : [])],
    rescore: fields.get("rescore") ? 200 : null,
    verify: fields.get("verify") ? { top: 3, controls: 3 } : null,
  };
}

function scoreCell({ score, exact, percentile, verified }, maxScore) {
  const share = maxScore > 0 ? Math.abs(score) / maxScore : 0;
  const fill = el("span", { className: score < 0 ? "fill negative" : "fill" });
  fill.style.width = `${(100 * share).toFixed(1)}%`;
  return el("td", { className: "score" },
    el("span", { className: "number", textContent: score.toFixed(4) }),
    el("span", { className: "track", attributes: { "aria-hidden": "true" } }, fill),
    exact ? exactLine() : null,
    percentile === null || percentile === undefined ? null : percentileLine(percentile),
    verified ? unlearningLine(verified) : null);
}

const exactLine = () =>
  el("span", {
    className: "faint",
    title: "The document ran through the model again, and was scored by its whole gradient",
    textContent: "exact",
  });

const percentileLine = (percentile) =>
  el("span", {
    className: "faint",
    title: "Share of random documents of the index that score lower",
    textContent: `above ${percentile.toFixed(2)} %`,
  });

/** Formats a change with its sign. The change is null if the unlearning step broke the model. */
const formatChange = (value) =>
  (value === null ? "not finite" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}`);

const unlearningLine = ({ log_probability: logProbability }) =>
  el("span", {
    className: "faint",
    title: "Change of the completion's log-probability after one step of unlearning this document alone",
    textContent: `unlearned: ${formatChange(logProbability)}`,
  });

/** Shades each token by its share of the score. */
function heatStrip(tokens) {
  const maxInfluence = Math.max(...tokens.map((token) => Math.abs(token.influence)));
  return tokens.map(({ token, influence }) => {
    const className = influence < 0 ? "token negative" : "token";
    const node = el("span", { className, title: influence.toFixed(4), textContent: token });
    const percent = maxInfluence > 0 ? (70 * Math.abs(influence)) / maxInfluence : 0;
    node.style.setProperty("--share", `${percent.toFixed(0)}%`);
    return node;
  });
}

function metadataCell(metadata) {
  const entries = Object.entries(metadata ?? {});
  const format = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return el("td", { className: "metadata" }, entries.map(([key, value]) =>
    el("span", { className: "chip" }, el("b", { textContent: key }), ` ${format(value)}`)));
}

function resultRow(row, maxScore) {
  return el("tr", {},
    el("td", { className: "number", textContent: row.rank }),
    scoreCell(row, maxScore),
    el("td", {}, el("code", { textContent: row.id })),
    el("td", { className: "text" }, row.tokens ? heatStrip(row.tokens) : [
      el("span", { textContent: row.prompt ?? "" }),
      row.completion ? el("mark", { textContent: row.completion }) : null]),
    metadataCell(row.metadata));
}

function resultTable(caption, rows) {
  if (!rows.length) return note(`${caption}: none`);
  const maxScore = Math.max(...rows.map((row) => Math.abs(row.score)));
  const headings = ["#", "Score", "Id", "Training document", "Metadata"];
  return el("div", { className: "scroll", tabIndex: 0, attributes: { role: "region", "aria-label": caption } },
    el("table", {},
      el("caption", { textContent: caption }),
      el("thead", {}, el("tr", {}, headings.map((heading) => el("th", { scope: "col", textContent: heading })))),
      el("tbody", {}, rows.map((row) => resultRow(row, maxScore)))));
}

function verificationText({ mean, controls }) {
  const noun = controls.length === 1 ? "document" : "documents";
  const comparison = mean === null ? "" : ` ${controls.length} random ${noun}: ${formatChange(mean.log_probability)} on average.`;
  return "The best documents were unlearned one by one, and all weights were restored after each. Their rows show how the "
    + `log-probability of the completion changed.${comparison}`;
}

const rescoringText = ({ candidates, exact }) =>
  `${exact} of ${candidates} candidates were scored by their whole gradients. They come first.`
  + (exact < candidates ? " There was no time for the others." : "");

function timingText(timing, isRescored, isVerified) {
  const steps = [
    `queue ${formatMs(timing.queue)}`, `gradient ${formatMs(timing.gradient)}`, `search ${formatMs(timing.search)}`,
    ...(isRescored ? [`exact scores ${formatMs(timing.rescore)}`] : []),
    ...(isVerified ? [`unlearning ${formatMs(timing.verify)}`] : []),
  ];
  return `${formatMs(timing.total)} (${steps.join(", ")})`;
}

/** Shows a warning about the query. The suggestion is in quotes, so that a space at its beginning can be seen. */
function warningNote({ detail, suggestion }) {
  const meant = suggestion ? ` Probably meant: ${JSON.stringify(suggestion)}.` : "";
  return note(`Warning: ${detail}.${meant}`, "warning");
}

function answerView(answer) {
  const { query, rescored, verification } = answer;
  const parts = [
    `generation ${answer.generation}`,
    `${query.n_tokens} ${query.n_tokens === 1 ? "token" : "tokens"} of completion, loss ${query.loss.toFixed(3)}`,
    timingText(answer.timing_ms, Boolean(rescored), Boolean(verification)),
  ];
  return [
    el("p", { className: "query" }, el("span", { textContent: query.prompt }), el("mark", { textContent: query.completion })),
    el("p", { className: "faint", textContent: parts.join(" · ") }),
    ...(answer.warnings ?? []).map(warningNote),
    answer.notice ? note(`${answer.notice}: ${NOTICE_MEANING}`) : null,
    rescored ? note(rescoringText(rescored)) : null,
    verification ? note(verificationText(verification)) : null,
    answer.results ? resultTable("Made it more likely", answer.results) : null,
    answer.opponents ? resultTable("Made it less likely", answer.opponents) : null,
  ].filter(Boolean);
}

/** Sends the form to POST /attribute, and shows the answer. */
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
      const answer = await call("attribute", { method: "POST", headers, body: JSON.stringify(readQuery(form)) });
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
