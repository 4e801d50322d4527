// A model's transcript: words that light up, and files to take away.

import { wordAt } from "./timeline.js";

const UNSURE = 0.5; // words less sure than this are set apart

const PAUSE = 2; // seconds without a word begin a paragraph, and so do
const LONG = 80; // words of the one before, at the next segment

export class Text {
  // `play` is called with a time; `stem` begins the names of files.
  constructor(model, transcript, stem, play) {
    Object.assign(this, { words: transcript.words, now: -1, play });
    this.element = document.createElement("article");
    this.element.dataset.model = model;
    const name = document.createElement("h3");
    name.textContent = model;
    this.holder = document.createElement("div");
    this.holder.className = "words";
    this.holder.setAttribute("role", "group");
    this.holder.setAttribute(
      "aria-label",
      `Words of ${model}: arrow keys go from word to word, Enter plays from there`,
    );
    this.spans = this.words.map((word, i) => this.#span(word, i));
    if (this.spans.length) {
      this.spans[0].tabIndex = 0;
      this.holder.append(...this.#paragraphs(transcript));
    } else this.holder.textContent = "No speech found.";
    this.holder.addEventListener("keydown", (event) => this.#key(event));
    const files = document.createElement("div");
    files.className = "row";
    files.append(copier(() => this.text()), "Download", ...downloads(transcript, stem));
    this.element.append(name, this.holder, files);
  }

  // Plain text, an empty line between paragraphs.
  text() {
    const paragraphs = [...this.holder.querySelectorAll("p")];
    const of = (one) => [...one.querySelectorAll(".word")].map((word) => word.textContent).join(" ");
    return paragraphs.map(of).join("\n\n");
  }

  // Light up the word said at a time.
  light(time) {
    const now = wordAt(this.words, time);
    if (now === this.now) return;
    this.spans[this.now]?.classList.remove("now");
    this.now = now;
    const span = this.spans[now];
    if (!span) return;
    span.classList.add("now");
    const { holder } = this; // scroll inside the box only: the page stays where it is
    if (span.offsetTop < holder.scrollTop || below(span) > holder.scrollTop + holder.clientHeight) {
      holder.scrollTop = span.offsetTop - holder.clientHeight / 2;
    }
  }

  // Paragraphs of words; several of them with the times where they begin.
  #paragraphs({ words, segments }) {
    const begins = new Set((segments ?? []).map(({ start }) => start));
    const groups = [];
    words.forEach((word, i) => {
      const pause = i && word.start - words[i - 1].end >= PAUSE;
      const long = i && groups.at(-1).length >= LONG && begins.has(word.start);
      if (!i || pause || long || groups.at(-1).length >= 2 * LONG) groups.push([]);
      groups.at(-1).push(i);
    });
    return groups.map((group) => {
      const paragraph = document.createElement("p");
      if (groups.length > 1) {
        const when = document.createElement("span");
        const seconds = Math.floor(words[group[0]].start);
        when.className = "when";
        when.textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
        paragraph.append(when);
      }
      paragraph.append(...group.flatMap((i) => [this.spans[i], " "]));
      return paragraph;
    });
  }

  #span(word, number) {
    const span = document.createElement("span");
    span.className = "word";
    span.textContent = word.word;
    span.tabIndex = -1;
    span.title = `${word.start.toFixed(2)} s, confidence ${word.confidence.toFixed(2)}`;
    span.classList.toggle("unsure", word.confidence < UNSURE);
    span.addEventListener("click", () => {
      if (!getSelection().isCollapsed) return; // somebody marks text
      this.#focus(number);
      this.play(word.start);
    });
    return span;
  }

  #focus(number) {
    for (const span of this.spans) span.tabIndex = -1;
    this.spans[number].tabIndex = 0;
    this.spans[number].focus();
  }

  #key(event) {
    const at = this.spans.indexOf(document.activeElement);
    const last = this.spans.length - 1;
    if (at >= 0 && event.key === "Enter") this.play(this.words[at].start);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
    if (at < 0 || to === undefined || event.shiftKey) return;
    event.preventDefault();
    this.#focus(Math.min(last, Math.max(0, to)));
  }
}

function copier(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Select the text to copy it";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}

// Whether it is on the clipboard; pages without https have no other way than a marked field.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

function below(element) {
  return element.offsetTop + element.offsetHeight;
}

function downloads(transcript, stem) {
  const files = {
    txt: () => `${transcript.text}\n`,
    srt: () => transcript.subtitles.srt,
    vtt: () => transcript.subtitles.vtt,
    json: () => `${JSON.stringify(transcript, null, 2)}\n`,
  };
  return Object.entries(files).map(([kind, content]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = kind;
    button.addEventListener("click", () => save(`${stem}.${kind}`, content()));
    return button;
  });
}

function save(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
