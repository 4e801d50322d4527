// The page: takes a recording, asks the server, shows what came of it.

import * as api from "./api.js";
import { Live } from "./live.js";
import * as microphone from "./record.js";
import { Text } from "./texts.js";
import { Timeline } from "./timeline.js";

const STRETCH = 30; // seconds shown at once
const LEVEL_HALF = 0.3; // seconds in which the level of a recording falls to a half
const TOUCHES = matchMedia("(hover: none) and (pointer: coarse)").matches; // and has no mouse
const $ = (id) => document.getElementById(id);
const audio = $("audio");

let file = null; // to transcribe
let recording = null; // what the microphone is writing
let live = null; // words of a recording while it lasts
let cards = []; // the server's models
let work = null; // what is going on, to cancel it
let shown = null; // the result on the page
let listing = null; // the list of models on its way
let frame = 0; // the next call of follow

const timeline = new Timeline(
  {
    box: $("time"), wave: $("wave"), mel: $("mel"), axis: $("axis"), strips: $("strips"), head: $("head"),
    cursor: $("cursor"), readout: $("readout"), legend: $("legend"),
  },
  play,
  () => (audio.paused ? play(audio.currentTime) : audio.pause()),
);

function say(text) {
  $("status").textContent = text;
}

// Say what is wrong; of a file, with its name.
function complain(error, name) {
  $("error").hidden = !error;
  let message = error ? error.message : "";
  if (error?.status === 401) {
    message = $("key").value ? "This is not the API key of this server." : "Enter the API key of this server.";
    $("key-label").hidden = false;
    $("key").focus();
  } else if (error && name) message = `${name}: ${message.replace(/^file: /, "")}`;
  $("error").textContent = message;
}

// Take the last result off the page.
function clear() {
  shown = null;
  audio.pause();
  if (audio.src) URL.revokeObjectURL(audio.src);
  audio.removeAttribute("src");
  $("result").hidden = true;
}

// The list of models; one that is on its way already is waited for.
function load() {
  return (listing ??= list().finally(() => (listing = null)));
}

async function list() {
  try {
    const models = (cards = await api.models());
    const options = () => models.map(({ id }) => new Option(id, id));
    $("model").replaceChildren(...options());
    $("beside").replaceChildren(new Option("no other", ""), ...options());
    $("beside").parentElement.hidden = models.length < 2;
    complain(null);
    about();
  } catch (error) {
    complain(error);
  }
}

// What the chosen model is.
function about() {
  const card = cards.find(({ id }) => id === $("model").value);
  $("about").hidden = !card?.description;
  $("about").textContent = card?.description ?? "";
}

function choose(chosen) {
  if (!chosen) return;
  file = chosen;
  $("go").disabled = false;
  transcribe();
}

async function transcribe() {
  if (!$("model").value) await load();
  const names = [...new Set([$("model").value, $("beside").value])].filter(Boolean);
  if (!file || !names.length) return;
  work?.abort();
  const mine = (work = new AbortController());
  const began = performance.now();
  const source = file;
  complain(null);
  $("cancel").hidden = false;
  const clock = setInterval(() => {
    say(`Transcribing ${source.name} … ${Math.round((performance.now() - began) / 1000)} s`);
  }, 500);
  say(`Transcribing ${source.name} …`);
  try {
    const found = await Promise.all(names.map((name) => api.transcribe(source, name, mine.signal)));
    await show(source, names, found, mine);
    const took = ((performance.now() - began) / 1000).toFixed(1);
    say(`${found[0].duration.toFixed(1)} s of audio, done in ${took} s.`);
  } catch (error) {
    if (mine.signal.aborted) say("Cancelled.");
    else {
      say("");
      clear();
      complain(error, source.name);
    }
  } finally {
    clearInterval(clock);
    if (work === mine) $("cancel").hidden = true;
  }
}

async function show(source, names, found, mine) {
  const stem = source.name.replace(/\.[^.]*$/, "") || "recording";
  const texts = found.map(
    (transcript, i) =>
      new Text(names[i], transcript, names.length > 1 ? `${stem}.${names[i]}` : stem, play),
  );
  const next = { source, names, texts, found, looks: new Map(), page: -1 };
  // a transcript is worth having without a look at the experts
  const looks = await stretch(next, 0, mine.signal).catch((error) => {
    if (!mine.signal.aborted) complain(error, source.name);
  });
  if (shown) URL.revokeObjectURL(audio.src);
  shown = next;
  audio.src = URL.createObjectURL(source);
  $("result-name").textContent = source.name;
  $("texts").replaceChildren(...texts.map((text) => text.element));
  $("pages").hidden = found[0].duration <= STRETCH;
  $("result").hidden = false;
  $("time").hidden = $("legend").hidden = $("help").hidden = !looks;
  if (looks) turn(0, looks);
}

// What the models make of one stretch; asked once.
function stretch(result, page, signal) {
  const { looks, names, source } = result;
  if (!looks.has(page)) {
    const asked = names.map((name) => api.inspect(source, name, page * STRETCH, STRETCH, signal));
    looks.set(page, Promise.all(asked));
    looks.get(page).catch(() => looks.delete(page));
  }
  return looks.get(page);
}

function turn(page, looks) {
  shown.page = page;
  $("time").hidden = $("legend").hidden = $("help").hidden = false;
  timeline.show(looks, shown.found.map(({ words }) => words));
  $("help").textContent = help(looks);
  timeline.playhead(audio.currentTime);
  const { duration } = shown.found[0];
  const end = Math.min(duration, (page + 1) * STRETCH);
  $("span").textContent = `${clock(page * STRETCH)} to ${clock(end)} of ${clock(duration)}`;
  $("earlier").disabled = page === 0;
  $("later").disabled = (page + 1) * STRETCH >= duration;
}

// What the timeline shows, and how to use it.
function help(looks) {
  const routed = looks.filter((look) => look.layers.length);
  const said = ["Above: loudness"];
  if (looks.some((look) => look.mel)) said.push("the spectrogram the model reads, low pitch at the bottom");
  if (routed.length) {
    const strips = routed.length > 1 ? "a strip for each model" : "the experts";
    said.push(`${strips}, one row a layer, the first at the bottom, one color an expert`);
  }
  const keys = routed.length ? "left and right move, up and down change the layer" : "left and right move";
  return `${said.join("; then ")}. ` + (TOUCHES
    ? "Tap to play from there."
    : `Click to play from there. By keyboard: arrow keys ${keys}, Enter plays from there, Space pauses.`);
}

async function turnTo(page) {
  const result = shown;
  result.wanted = page;
  try {
    const looks = await stretch(result, page);
    if (shown === result && result.wanted === page) turn(page, looks);
  } catch (error) {
    complain(error);
  }
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function play(time) {
  audio.currentTime = time;
  audio.play().catch((error) => {
    // to be paused at once is no failure
    if (error.name !== "AbortError") say("This browser cannot play the recording.");
  });
}

function follow() {
  cancelAnimationFrame(frame); // events call it too, and one loop is enough
  if (!shown) return;
  const time = audio.currentTime;
  for (const text of shown.texts) text.light(time);
  timeline.playhead(time);
  const page = Math.min(
    Math.floor(time / STRETCH),
    Math.ceil(shown.found[0].duration / STRETCH) - 1,
  );
  if (!audio.paused && page >= 0 && page !== shown.page && page !== shown.wanted) turnTo(page);
  if (!audio.paused) frame = requestAnimationFrame(follow);
}

async function record() {
  const button = $("record");
  button.disabled = true; // the browser may ask first
  try {
    complain(null);
    if (recording) {
      const stopped = await stop();
      choose(stopped);
      return;
    }
    if (!navigator.mediaDevices) {
      throw new Error("A browser gives the microphone only to localhost and to https pages.");
    }
    audio.pause(); // or the microphone hears it
    let heard = 0;
    $("level").value = 0;
    recording = await microphone.start((part, rate) => {
      heard += part.length / rate;
      $("timer").textContent = clock(heard);
      const loudest = part.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
      const fallen = $("level").value * 0.5 ** (part.length / rate / LEVEL_HALF);
      $("level").value = Math.max(loudest, fallen);
      live?.push(part);
    });
    const card = cards.find(({ id }) => id === $("model").value);
    if (card?.streams) {
      $("live").hidden = false;
      live = new Live(card.id, recording.rate, $("live"), $("key").value);
    }
    $("timer").textContent = clock(0);
    $("recording").hidden = false;
    button.classList.add("on");
    button.textContent = "Stop recording";
    say("Recording …");
  } catch (error) {
    complain(error);
  } finally {
    button.disabled = false;
  }
}

// End the recording; gives its file.
async function stop() {
  const stopping = recording;
  recording = null;
  live?.close();
  live = null;
  $("recording").hidden = $("live").hidden = true;
  $("record").classList.remove("on");
  $("record").textContent = "Record";
  return stopping.stop();
}

async function discard() {
  if (!recording) return;
  await stop();
  say("Recording cancelled.");
}

async function example() {
  try {
    complain(null);
    const answer = await fetch("example.flac");
    if (!answer.ok) throw new Error("The example cannot be loaded.");
    choose(new File([await answer.blob()], "example.flac", { type: "audio/flac" }));
  } catch (error) {
    complain(error);
  }
}

$("file").addEventListener("change", () => choose($("file").files[0]));
$("record").addEventListener("click", record);
$("discard").addEventListener("click", discard);
$("example").addEventListener("click", example);
$("model").addEventListener("change", about);
$("cancel").addEventListener("click", () => work?.abort());
$("earlier").addEventListener("click", () => turnTo(shown.page - 1));
$("later").addEventListener("click", () => turnTo(shown.page + 1));
$("key").addEventListener("change", () => {
  api.setKey($("key").value);
  load();
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  transcribe();
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // a file dropped beside the box must not replace the page
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files[0]);
  });
}
for (const kind of ["play", "timeupdate", "seeked"]) audio.addEventListener(kind, follow);

document.body.classList.toggle("touches", TOUCHES);
load();
