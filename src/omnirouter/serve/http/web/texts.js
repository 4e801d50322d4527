// A model's transcript: words that light up, and files to take away.

import { wordAt } from "./timeline.js";

const UNSURE = 0.5; // words less sure than this are set apart

export class Text {
  // `play` is called with a time; `stem` begins the names of files.
  constructor(model, transcript, stem, play) {
    Object.assign(this, { words: transcript.words, now: -1 });
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
    this.buttons = this.words.map((word, i) => this.#button(word, i, play));
    if (this.buttons.length) {
      this.buttons[0].tabIndex = 0;
      this.holder.append(...this.buttons.flatMap((button) => [button, " "]));
    } else this.holder.textContent = "No speech found.";
    this.holder.addEventListener("keydown", (event) => this.#key(event));
    const files = document.createElement("div");
    files.className = "row";
    files.append("Download", ...downloads(transcript, stem));
    this.element.append(name, this.holder, files);
  }

  // Light up the word said at a time.
  light(time) {
    const now = wordAt(this.words, time);
    if (now === this.now) return;
    this.buttons[this.now]?.classList.remove("now");
    this.now = now;
    const button = this.buttons[now];
    if (!button) return;
    button.classList.add("now");
    const { holder } = this; // scroll inside the box only: the page stays where it is
    if (button.offsetTop < holder.scrollTop || below(button) > holder.scrollTop + holder.clientHeight) {
      holder.scrollTop = button.offsetTop - holder.clientHeight / 2;
    }
  }

  #button(word, number, play) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word.word;
    button.tabIndex = -1;
    button.title = `${word.start.toFixed(2)} s, confidence ${word.confidence.toFixed(2)}`;
    button.classList.toggle("unsure", word.confidence < UNSURE);
    button.addEventListener("click", () => {
      this.#focus(number);
      play(word.start);
    });
    return button;
  }

  #focus(number) {
    for (const button of this.buttons) button.tabIndex = -1;
    this.buttons[number].tabIndex = 0;
    this.buttons[number].focus();
  }

  #key(event) {
    const at = this.buttons.indexOf(document.activeElement);
    const last = this.buttons.length - 1;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    this.#focus(Math.min(last, Math.max(0, to)));
  }
}

function below(button) {
  return button.offsetTop + button.offsetHeight;
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
