// Waveform, spectrogram and expert strips on canvases.

// Okabe and Ito's colors, which the color-blind can tell apart; beyond eight, steps of a wheel.
const EXPERTS = ["#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#f0e442", "#cc79a7", "#999999"];
// dark to bright, black over purple and orange to pale yellow
const SHADES = [[0, 0, 4], [60, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];
const ROW = 12; // pixels of a layer
const TALLEST = 300;

export function expertColor(number, count) {
  if (count <= EXPERTS.length) return EXPERTS[number];
  return `hsl(${Math.round((360 * number) / count)} 70% ${number % 2 ? 45 : 62}%)`;
}

function shade(value) {
  const place = (value / 255) * (SHADES.length - 1);
  const low = Math.min(Math.floor(place), SHADES.length - 2);
  return SHADES[low].map((part, i) => part + (place - low) * (SHADES[low + 1][i] - part));
}

const PALETTE = Array.from({ length: 256 }, (_, value) => shade(value));

// A canvas as sharp as the screen, emptied; gives its context and size in CSS pixels.
function cleared(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height };
}

export function wave(canvas, peaks, seconds) {
  const { context, width, height } = cleared(canvas);
  context.fillStyle = getComputedStyle(canvas).getPropertyValue("--mark");
  const most = Math.max(1, ...peaks.values);
  const step = (width * peaks.seconds) / seconds;
  peaks.values.forEach((value, i) => {
    const tall = Math.max(1, (value / most) * (height - 4));
    context.fillRect(i * step, (height - tall) / 2, Math.max(step, 0.6), tall);
  });
}

export function spectrogram(canvas, mel, seconds) {
  const { context, width, height } = cleared(canvas);
  const frames = mel.values.length / mel.bins;
  if (!frames) return;
  const image = new ImageData(frames, mel.bins);
  for (let frame = 0; frame < frames; frame += 1) {
    for (let bin = 0; bin < mel.bins; bin += 1) {
      const color = PALETTE[mel.values[frame * mel.bins + bin]];
      const place = 4 * ((mel.bins - 1 - bin) * frames + frame);
      image.data.set([...color, 255], place);
    }
  }
  const whole = new OffscreenCanvas(frames, mel.bins);
  whole.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(whole, 0, 0, (width * frames * mel.seconds) / seconds, height);
}

// One row a layer, the first at the bottom.
export function strip(canvas, found, seconds) {
  const layers = found.layers.length;
  canvas.style.height = `${Math.min(TALLEST, Math.max(2 * ROW, layers * ROW))}px`;
  const { context, width, height } = cleared(canvas);
  const row = height / layers;
  const step = (width * found.frame_seconds) / seconds;
  found.layers.forEach((layer, number) => {
    const top = height - (number + 1) * row;
    layer.colours.forEach((color, frame) => {
      context.fillStyle = expertColor(color, found.num_experts);
      context.fillRect(frame * step, top, step + 0.5, row - (row > 4 ? 1 : 0));
    });
  });
}
