// Words of a streaming model while somebody speaks.

export class Live {
  // `place` is the element that shows them; `key` is sent as a protocol: a page can set no header.
  constructor(model, rate, place, key) {
    Object.assign(this, { place, said: [], waiting: [], refused: false });
    place.textContent = "Listening …";
    const query = new URLSearchParams({ model, sample_rate: Math.round(rate) });
    const address = new URL(`v1/audio/stream?${query}`, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    const sent = btoa(key).replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, "");
    this.socket = new WebSocket(address, key ? ["omnirouter", `bearer.${sent}`] : []);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => this.waiting.splice(0).forEach((part) => this.socket.send(part));
    this.socket.onmessage = (event) => this.#take(JSON.parse(event.data));
    this.socket.onclose = () => {
      if (this.refused) return;
      if (!this.said.length) place.textContent = ""; // it listens no more
      place.append(" No live words: the connection ended. The recording goes on.");
    };
  }

  // The next samples, floats in [-1, 1].
  push(samples) {
    const pcm = Int16Array.from(samples, (one) => Math.round(32767 * Math.max(-1, Math.min(1, one))));
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(pcm.buffer);
    else if (this.socket.readyState === WebSocket.CONNECTING) this.waiting.push(pcm.buffer);
  }

  close() {
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
  }

  #take(message) {
    if (message.type === "error") {
      this.refused = true;
      this.place.textContent = message.error.message;
    }
    if (message.type !== "update") return;
    this.said.push(...message.final.map(({ word }) => word));
    const partial = document.createElement("i");
    partial.textContent = message.partial.map(({ word }) => word).join(" ");
    if (this.said.length || partial.textContent) {
      this.place.replaceChildren(this.said.join(" "), " ", partial);
    }
  }
}
