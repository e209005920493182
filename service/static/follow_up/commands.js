/* A request as a command of the shell and as Python, which give the same answer. */

import { addressOf, storedKey } from "../shared/api.js";

const quoteForShell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function makeCurl(request) {
  const key = storedKey() ? ' -H "Authorization: Bearer $BERGSON_API_KEY"' : "";
  return `curl -sS ${addressOf("attribute")} -H 'Content-Type: application/json'${key} -d ${quoteForShell(JSON.stringify(request))}`;
}

/** Returns a value of JSON as Python writes it. */
export function pythonLiteral(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${pythonLiteral(item)}`).join(", ")}}`;
}

export function makePython({ index, ...request }) {
  const fields = Object.entries(request).map(([name, value]) => `, ${name}=${pythonLiteral(value)}`).join("");
  return `from service.client import Client

with Client(${JSON.stringify(addressOf("").replace(/\/$/, ""))}) as client:
    answer = client.attribute(${JSON.stringify(index)}${fields})
for row in answer.results or ():
    print(row.rank, row.score, row.id, row.prompt)
`;
}
