// The photo, what was found in it, and both drawn together.

const MOST_SIDE = 2048; // px that are kept of a photo: a screen hardly shows more
const MOST_MASK_SIDE = 1024; // px that are kept of a mask: there may be many
const TALLEST = 0.72; // of the window
const COLOURS = ["#1d4ed8", "#c2410c", "#15803d", "#a21caf", "#b91c1c", "#0e7490", "#854d0e", "#6d28d9"];
const TINT = 0.45; // of a mask's colour in its pixels
const FAINT = 0.2; // of all other regions while one is pointed at
const NAME = 20; // px that a name is high

export const photo = {
  file: null,
  size: null, // width and height of the upright photo in px, if they are known
  picture: null, // it as a bitmap of MOST_SIDE at most; null where this browser cannot show it
  regions: [], // what was found in it
  lit: null, // the region that is pointed at
  marks: [], // points to segment: x, y, and whether it is in what is meant
};

const $ = (id) => document.getElementById(id);

export async function take(file) {
  Object.assign(photo, { file, size: null, picture: null, regions: [], lit: null, marks: [] });
  const named = `${file.name}, ${(file.size / 1e6).toFixed(file.size < 1e6 ? 2 : 1)} MB`;
  $("empty").hidden = true;
  $("about").textContent = named;
  const decoded = await bitmapOf(file).catch(() => null);
  if (file !== photo.file) return; // another one was taken in the meantime
  Object.assign(photo, decoded);
  $("about").textContent = decoded ? `${named}, ${photo.size.join(" × ")} px`
    : `${named}. This browser cannot show it, but the service may be able to read it.`;
  draw();
}

async function bitmapOf(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject }));
    const size = [image.naturalWidth, image.naturalHeight]; // upright
    const [resizeWidth, resizeHeight] = within(MOST_SIDE, size);
    const options = { imageOrientation: "from-image", resizeWidth, resizeHeight, resizeQuality: "medium" };
    return { size, picture: await createImageBitmap(file, options) }; // decoded beside this thread
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

function within(most, size) {
  const scale = Math.min(1, most / Math.max(...size));
  return size.map((side) => Math.max(1, Math.round(side * scale)));
}

// Regions -------------------------------------------------------------------------------------------------

export function regionOf(box, label, score, mask) {
  const key = JSON.stringify([box, label, mask?.counts]);
  const known = photo.regions.find((region) => region.key === key);
  if (known) return known; // several operations may have looked at one place
  const colour = COLOURS[photo.regions.length % COLOURS.length];
  const region = { key, box, label, score, colour, hidden: false, ...(mask ? tinted(mask, colour) : {}) };
  photo.regions.push(region);
  photo.size ??= mask ? mask.size.toReversed() : null; // of a photo that this browser cannot show
  return region;
}

export function light(region) {
  photo.lit = region;
  draw();
}

function tinted({ size: [height, width], counts }, colour) {
  const inside = new Uint8Array(width * height); // column by column
  let at = 0, longest = 0, middle = 0;
  runs(counts).forEach((run, i) => {
    inside.fill(i % 2, at, at + run);
    if (i % 2 && run > longest) [longest, middle] = [run, at + Math.floor(run / 2)];
    at += run;
  });
  const [shownWidth, shownHeight] = within(MOST_MASK_SIDE, [width, height]);
  const pixels = new ImageData(shownWidth, shownHeight);
  const rgba = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)).concat(255);
  for (let y = 0; y < shownHeight; y++) {
    const row = Math.floor((y + 0.5) * height / shownHeight);
    for (let x = 0; x < shownWidth; x++) {
      const column = Math.floor((x + 0.5) * width / shownWidth);
      if (inside[column * height + row]) pixels.data.set(rgba, 4 * (y * shownWidth + x));
    }
  }
  const layer = Object.assign(document.createElement("canvas"), { width: shownWidth, height: shownHeight });
  layer.getContext("2d").putImageData(pixels, 0, 0);
  return { layer, deepest: [Math.floor(middle / height), middle % height, longest] }; // there its name has room
}

// COCO's compressed run lengths: five bits a character, lowest first; differences to the last but one
function runs(text) {
  const found = [];
  for (let i = 0; i < text.length;) {
    let value = 0, shift = 0, bits;
    do {
      bits = text.charCodeAt(i++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32);
    if (bits & 16) value |= -1 << shift; // the sign
    found.push(found.length > 2 ? value + found[found.length - 2] : value);
  }
  return found;
}

// Drawing -------------------------------------------------------------------------------------------------

export function draw() {
  const canvas = $("canvas");
  canvas.hidden = !photo.size;
  if (!photo.size) return;
  const [width, height] = photo.size;
  const fit = Math.min($("stage").clientWidth / width, TALLEST * window.innerHeight / height);
  const ratio = window.devicePixelRatio; // as many pixels as are shown: lines and letters stay sharp
  canvas.width = Math.max(1, Math.round(width * fit * ratio));
  canvas.height = Math.max(1, Math.round(height * fit * ratio));
  canvas.style.width = `${canvas.width / ratio}px`;
  const seen = photo.regions.filter((region) => !region.hidden);
  const there = photo.regions.map((region) => region.label).join(", ");
  canvas.setAttribute("aria-label", there ? `The photo. Found in it: ${there}` : "The photo");
  const [across, down] = [canvas.width / width, canvas.height / height];
  const pen = { context: canvas.getContext("2d"), ratio, across, down };
  drawPicture(pen, canvas);
  for (const part of [drawMask, drawBox, drawName]) {
    for (const region of seen) {
      pen.context.globalAlpha = photo.lit && photo.lit !== region ? FAINT : 1;
      part(pen, region);
    }
  }
  pen.context.globalAlpha = 1;
  for (const mark of photo.marks) drawMark(pen, mark);
}

function drawPicture({ context, across, ratio }, { width, height }) {
  context.fillStyle = photo.picture ? "#fff" : "#888"; // transparency lies on white, as for the service
  context.fillRect(0, 0, width, height);
  context.imageSmoothingEnabled = across < 4 * ratio; // of tiny pictures one wants to see the pixels
  context.imageSmoothingQuality = "high";
  if (photo.picture) context.drawImage(photo.picture, 0, 0, width, height);
}

function drawMask({ context }, { layer }) {
  if (!layer) return;
  context.globalAlpha *= TINT;
  context.imageSmoothingEnabled = false;
  context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
}

function drawBox(pen, region) {
  if (region.layer && photo.lit !== region) return; // the mask says it better
  const { context, ratio } = pen;
  const [x0, y0, x1, y1] = onCanvas(pen, region.box, ratio);
  for (const [strokeStyle, lineWidth] of [["#fff", 5 * ratio], [region.colour, 3 * ratio]]) {
    Object.assign(context, { strokeStyle, lineWidth });
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
}

function drawName(pen, region) {
  const { context, ratio } = pen;
  const [column, row, depth] = region.deepest ?? [...region.box, Infinity];
  if (photo.lit ? photo.lit !== region : depth * pen.down < NAME * ratio) return; // or nothing else would be seen
  const [x0, y0] = [column * pen.across, row * pen.down];
  const text = nameOf(region);
  context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
  const width = Math.min(context.measureText(text).width + 10 * ratio, context.canvas.width);
  const height = NAME * ratio;
  const left = Math.min(Math.max(region.deepest ? x0 - width / 2 : x0, 0), context.canvas.width - width);
  const top = Math.max(region.deepest ? y0 - height / 2 : y0 - height, 0);
  context.fillStyle = region.colour;
  context.fillRect(left, top, width, height);
  context.fillStyle = "#fff";
  context.fillText(text, left + 5 * ratio, top + 14.5 * ratio, width - 10 * ratio);
}

function nameOf({ label, score, layer }) {
  const short = label.length > 32 ? `${label.slice(0, 31)}…` : label;
  return layer || typeof score !== "number" ? short : `${short} ${score.toFixed(2)}`;
}

function drawMark({ context, ratio, across, down }, { x, y, inside }) {
  context.beginPath();
  context.arc(x * across, y * down, 6 * ratio, 0, 2 * Math.PI);
  const fillStyle = inside ? "#15803d" : "#b91c1c";
  Object.assign(context, { fillStyle, strokeStyle: "#fff", lineWidth: 2 * ratio });
  context.fill();
  context.stroke();
}

function onCanvas({ context, across, down }, [x0, y0, x1, y1], inset) { // lines at the photo's edge stay visible
  const { width, height } = context.canvas;
  return [Math.max(x0 * across, inset), Math.max(y0 * down, inset),
    Math.min(x1 * across, width - inset), Math.min(y1 * down, height - inset)];
}

export function placeOf(event) { // of a click, in the photo
  const [width, height] = photo.size;
  const shown = $("canvas").getBoundingClientRect();
  const inside = (share, side) => Math.min(Math.max(Math.floor(share * side), 0), side - 1);
  return [inside((event.clientX - shown.left) / shown.width, width),
    inside((event.clientY - shown.top) / shown.height, height)];
}
