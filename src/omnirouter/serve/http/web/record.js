// The microphone as a WAV file: samples as they are, which every server can read.

// `heard` is called with each part: samples, their rate.
export async function start(heard = () => {}) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  try {
    return await listen(stream, heard);
  } catch (error) {
    for (const track of stream.getTracks()) track.stop();
    throw error;
  }
}

async function listen(stream, heard) {
  const context = new AudioContext();
  await context.audioWorklet.addModule("recorder.js");
  const source = context.createMediaStreamSource(stream);
  const recorder = new AudioWorkletNode(context, "recorder");
  const parts = [];
  recorder.port.onmessage = (event) => {
    parts.push(event.data);
    heard(event.data, context.sampleRate);
  };
  source.connect(recorder);
  recorder.connect(context.destination); // it is silent; without it some browsers do not run it
  return {
    rate: context.sampleRate,
    async stop() {
      source.disconnect();
      recorder.disconnect();
      for (const track of stream.getTracks()) track.stop();
      await context.close();
      return wav(parts, context.sampleRate);
    },
  };
}

function wav(parts, rate) {
  const samples = parts.reduce((sum, part) => sum + part.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * samples));
  const text = (place, letters) =>
    [...letters].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // length of what follows, then: PCM, one channel
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples, true);
  let place = 44;
  for (const part of parts) {
    for (const sample of part) {
      view.setInt16(place, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true);
      place += 2;
    }
  }
  return new File([view], "recording.wav", { type: "audio/wav" });
}
