// Waveform, spectrogram and strips of one stretch, with playhead, cursor, mouse and keyboard.

import * as draw from "./draw.js";

const SECOND = 1;

// The word said at a time, of words in order; undefined between words.
export function wordAt(words, time) {
  let low = 0;
  let high = words.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (words[middle].start <= time) low = middle + 1;
    else high = middle;
  }
  const found = words[low - 1];
  return found && time < found.end ? low - 1 : -1;
}

export class Timeline {
  // `parts` are the page's elements, `play` is called with a time, `toggle` plays or pauses.
  constructor(parts, play, toggle) {
    Object.assign(this, { parts, play, toggle, looks: [], texts: [], layer: 0, at: 0 });
    const { box } = parts;
    box.addEventListener("pointermove", (event) => this.#hover(event));
    box.addEventListener("pointerleave", () => this.#leave());
    box.addEventListener("click", (event) => play(this.#timeOf(event)));
    box.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.redraw()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  // Show what models make of a stretch: inspections and, in the same order, their words.
  show(looks, texts) {
    Object.assign(this, { looks, texts, start: looks[0].start, seconds: looks[0].seconds });
    this.at = this.start;
    this.layer = Math.min(this.layer, this.#deepest());
    const { box, mel, strips, legend } = this.parts;
    box.setAttribute("aria-valuemin", this.start.toFixed(2));
    box.setAttribute("aria-valuemax", (this.start + this.seconds).toFixed(2));
    mel.hidden = !looks.some((look) => look.mel);
    this.#ticks();
    strips.replaceChildren(...looks.filter((look) => look.layers.length).map(this.#strip));
    const experts = Math.max(...looks.map((look) => (look.layers.length ? look.num_experts : 0)));
    legend.hidden = !experts;
    legend.replaceChildren(
      "Colors are matched between layers; one color is one of a layer's experts:",
      ...Array.from({ length: experts }, (_, number) => {
        const item = document.createElement("span");
        const patch = document.createElement("i");
        patch.style.background = draw.expertColor(number, experts);
        item.append(patch, String(number + 1));
        return item;
      }),
    );
    this.redraw();
    this.#move(this.start, false);
  }

  redraw() {
    if (!this.looks.length) return;
    this.#ticks();
    const { wave, mel, strips } = this.parts;
    draw.wave(wave, this.looks[0].peaks, this.seconds);
    const seen = this.looks.find((look) => look.mel);
    if (seen) draw.spectrogram(mel, seen.mel, this.seconds);
    const routed = this.looks.filter((look) => look.layers.length);
    strips.querySelectorAll("canvas").forEach((canvas, i) => {
      draw.strip(canvas, routed[i], this.seconds);
    });
  }

  // Put the playhead at a time; hidden outside the stretch.
  playhead(time) {
    const { head } = this.parts;
    head.hidden = time < this.start || time > this.start + this.seconds;
    head.style.left = `${(100 * (time - this.start)) / this.seconds}%`;
  }

  #strip = (look) => {
    const holder = document.createElement("div");
    const name = document.createElement("span");
    const canvas = document.createElement("canvas");
    holder.className = "strip";
    name.textContent = `${look.model}: ${look.layers.length} layers, ${look.num_experts} experts`;
    canvas.dataset.model = look.model;
    const rows = document.createElement("div");
    rows.className = "rows";
    const layers = look.layers.length;
    const step = layers <= 8 ? 1 : layers <= 16 ? 2 : 4;
    for (let layer = 1; layer <= layers; layer += 1) {
      if (layer > 1 && layer < layers && layer % step) continue;
      if (layer < layers && layer > layers - step && layer > 1) continue; // no room below the last
      const label = document.createElement("b");
      label.textContent = layer;
      label.style.top = `${(100 * (layers - layer + 0.5)) / layers}%`;
      rows.append(label);
    }
    rows.append(canvas);
    holder.append(name, rows);
    return holder;
  };

  // Seconds of the stretch, about one label each 80 pixels.
  #ticks() {
    const { axis, box } = this.parts;
    const most = Math.max(2, Math.floor(box.clientWidth / 80));
    const step = [0.5, 1, 2, 5, 10, 15, 30].find((one) => this.seconds / one <= most) ?? 60;
    const labels = [];
    for (let at = Math.ceil(this.start / step) * step; at < this.start + this.seconds; at += step) {
      const label = document.createElement("span");
      const whole = Math.floor(at + 1e-6);
      const seconds = step < 1 ? (at % 60).toFixed(1).padStart(4, "0") : String(whole % 60).padStart(2, "0");
      label.textContent = `${Math.floor(whole / 60)}:${seconds}`;
      label.style.left = `${(100 * (at - this.start)) / this.seconds}%`;
      if (at + step / 2 < this.start + this.seconds) labels.push(label);
    }
    axis.replaceChildren(...labels);
  }

  #deepest() {
    return Math.max(0, ...this.looks.map((look) => look.layers.length - 1));
  }

  #timeOf(event) {
    const { left, width } = this.parts.box.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - left) / width));
    return this.start + share * this.seconds;
  }

  #hover(event) {
    if (!this.looks.length) return;
    const canvas = event.target.closest?.(".strip canvas");
    const look = canvas && this.looks.find((one) => one.model === canvas.dataset.model);
    if (look) {
      const { top, height } = canvas.getBoundingClientRect();
      const row = Math.floor(((event.clientY - top) / height) * look.layers.length);
      this.layer = Math.min(look.layers.length - 1, Math.max(0, look.layers.length - 1 - row));
    }
    this.#move(this.#timeOf(event), true, look ? [look] : []);
  }

  #leave() {
    this.parts.cursor.hidden = true;
  }

  // Put the cursor at a time and say what is there, of the models `shown`.
  #move(time, visible, shown = this.looks) {
    this.at = Math.min(this.start + this.seconds, Math.max(this.start, time));
    const { box, cursor, readout } = this.parts;
    cursor.hidden = !visible;
    cursor.style.left = `${(100 * (this.at - this.start)) / this.seconds}%`;
    const said = [`${this.at.toFixed(2)} s`];
    for (const look of shown) {
      const layer = look.layers[this.layer];
      const frame = Math.floor((this.at - this.start) / look.frame_seconds + 1e-6);
      if (!layer || frame >= layer.experts.length) continue;
      const gate = (layer.gates[frame] / 255).toFixed(2);
      const expert = `expert ${layer.experts[frame] + 1}, color ${layer.colours[frame] + 1}`;
      said.push(`${look.model} layer ${this.layer + 1}: ${expert}, gate ${gate}`);
    }
    this.looks.forEach((look, i) => {
      const word = this.texts[i][wordAt(this.texts[i], this.at)];
      if (word) said.push(`${this.looks.length > 1 ? `${look.model} ` : ""}word “${word.word}”`);
    });
    readout.textContent = visible ? said.join(" · ") : "";
    box.setAttribute("aria-valuenow", this.at.toFixed(2));
    box.setAttribute("aria-valuetext", said.join(", "));
  }

  #key(event) {
    if (!this.looks.length) return;
    const frame = this.looks[0].frame_seconds;
    const times = {
      ArrowLeft: this.at - (event.shiftKey ? SECOND : frame),
      ArrowRight: this.at + (event.shiftKey ? SECOND : frame),
      PageUp: this.at - SECOND,
      PageDown: this.at + SECOND,
      Home: this.start,
      End: this.start + this.seconds,
    };
    if (event.key in times) this.#move(times[event.key], true);
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const layer = this.layer + (event.key === "ArrowUp" ? 1 : -1);
      this.layer = Math.min(this.#deepest(), Math.max(0, layer));
      this.#move(this.at, true);
    } else if (event.key === "Enter") this.play(this.at);
    else if (event.key === " ") this.toggle();
    else return;
    event.preventDefault();
  }
}
