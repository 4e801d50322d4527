// Talks to the server this page comes from.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let key = "";

export function setKey(value) {
  key = value;
}

async function call(path, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer.json();
  let message = `the server answered with status ${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // an answer of something between the server and here
  }
  throw new Refused(answer.status, message);
}

function form(file, values) {
  const data = new FormData();
  for (const [name, value] of Object.entries(values)) {
    for (const one of [value].flat()) data.append(name, one);
  }
  data.append("file", file, file.name || "recording.wav");
  return data;
}

export async function models() {
  return (await call("v1/models")).data;
}

export function transcribe(file, model, signal) {
  const body = form(file, {
    model,
    response_format: "verbose_json",
    "timestamp_granularities[]": ["word", "segment"],
    "include[]": "subtitles",
  });
  return call("v1/audio/transcriptions", { method: "POST", body, signal });
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// What a model makes of a stretch, with its rows of numbers as bytes.
export async function inspect(file, model, start, seconds, signal) {
  const body = form(file, { model, start, seconds });
  const found = await call("v1/inspect", { method: "POST", body, signal });
  found.peaks.values = bytes(found.peaks.data);
  if (found.mel) found.mel.values = bytes(found.mel.data);
  for (const layer of found.layers) {
    for (const name of ["experts", "colours", "gates"]) layer[name] = bytes(layer[name]);
  }
  return found;
}
