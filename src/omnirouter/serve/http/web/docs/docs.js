// Shows openapi.json: routes, what they take, what they answer.

function element(name, text = "", ...children) {
  const made = document.createElement(name);
  made.append(text, ...children);
  return made;
}

let schemas = {};

function resolved(schema = {}) {
  return schema.$ref ? schemas[schema.$ref.split("/").pop()] : schema;
}

function kind(schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const) return schema.const;
  if (schema.anyOf) return schema.anyOf.map(kind).join(" | ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  return schema.contentMediaType ? "file" : schema.type || "anything";
}

function fields(schema) {
  const list = element("dl");
  const needed = schema.required || [];
  for (const [name, field] of Object.entries(schema.properties || {})) {
    const must = needed.includes(name) ? ", needed" : "";
    const usual = field.default === undefined || must ? "" : `, ${JSON.stringify(field.default)}`;
    list.append(element("dt", `${name} (${kind(field)}${must}${usual})`));
    list.append(element("dd", field.description || ""));
  }
  return list;
}

function route(method, path, about) {
  const box = element("article");
  box.append(element("h3", "", element("code", `${method.toUpperCase()} ${path}`)));
  for (const part of (about.description || about.summary || "").split("\n\n")) {
    box.append(element("p", part));
  }
  for (const [type, content] of Object.entries(about.requestBody?.content || {})) {
    box.append(element("p", `Takes ${type}:`), fields(resolved(content.schema)));
  }
  const list = element("dl");
  for (const [status, answer] of Object.entries(about.responses)) {
    const types = Object.entries(answer.content || {});
    const said = types.map(([type, content]) => `${type}: ${kind(content.schema)}`);
    list.append(element("dt", `${status} ${answer.description}`), element("dd", said.join("; ")));
  }
  box.append(element("p", "Answers:"), list);
  return box;
}

const found = await (await fetch("../openapi.json")).json();
schemas = found.components.schemas;
const routes = document.getElementById("routes");
for (const part of found.info.description.split("\n\n")) routes.append(element("p", part));
for (const [path, methods] of Object.entries(found.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    routes.append(element("p"), route(method, path, about));
  }
}
routes.append(element("h2", "What answers hold"));
for (const [name, schema] of Object.entries(schemas)) {
  if (schema.properties && !name.includes("Validation")) {
    routes.append(element("p"), element("article", "", element("h3", name), fields(schema)));
  }
}
