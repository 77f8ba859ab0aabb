// Bars over time. Nodes are made once and moved, so that a refresh does not flicker.

const SVG = "http://www.w3.org/2000/svg";
const MINUTE = 60_000;
const DAY = 1440 * MINUTE;
const HEIGHT = 240, TOP = 12, BOTTOM = 26, RIGHT = 8;
const TICK_STEPS = [5, 10, 15, 30, 60, 120, 180, 360, 720, 1440].map((minutes) => minutes * MINUTE);
const TICK_WIDTH = 62;

/** Makes `parent` have `count` children of this kind, and returns them. */
function children(parent, tag, count) {
  while (parent.childElementCount > count) parent.lastElementChild.remove();
  while (parent.childElementCount < count) parent.append(document.createElementNS(SVG, tag));
  return [...parent.children];
}

function place(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    const text = String(value);
    if (node.getAttribute(name) !== text) node.setAttribute(name, text);
  }
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The smallest of 1, 2, 5, 10, … that divides `max` into at most four steps. Clicks are whole. */
function niceStep(max) {
  for (let power = 1; ; power *= 10) {
    for (const digit of [1, 2, 5]) {
      if (digit * power * 4 >= max) return digit * power;
    }
  }
}

function timeLabel(at) {
  const text = new Date(at).toISOString();
  return at % DAY === 0 ? text.slice(5, 10) : text.slice(11, 16);
}

/** `describe(bucket)` is the text of one bar. `draw` takes the buckets in order, and until when they are final. */
export function makeChart(frame, readout, number, describe) {
  const svg = frame.querySelector("svg");
  const part = (name) => svg.querySelector("." + name);
  let buckets = [], final = 0, chosen = null, left = 0, step = 1;

  function draw(newBuckets, completeThrough) {
    buckets = newBuckets;
    final = completeThrough;
    paint();
  }

  function paint() {
    if (buckets.length === 0) return;
    const width = Math.max(frame.clientWidth, 200);
    const start = buckets[0].start, end = buckets.at(-1).end;
    const yStep = niceStep(Math.max(1, ...buckets.map((bucket) => bucket.clicks)));
    const yMax = yStep * Math.ceil(Math.max(1, ...buckets.map((bucket) => bucket.clicks)) / yStep);
    left = 14 + 7.5 * number(yMax).length;
    step = (width - left - RIGHT) / buckets.length;
    const x = (at) => left + (Math.min(Math.max(at, start), end) - start) / (end - start) * (width - left - RIGHT);
    const y = (clicks) => TOP + (1 - Math.max(0, clicks) / yMax) * (HEIGHT - TOP - BOTTOM);
    place(svg, { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT });

    const levels = Array.from({ length: Math.round(yMax / yStep) + 1 }, (_, i) => i * yStep);
    children(part("grid"), "line", levels.length).forEach((line, i) => {
      place(line, { x1: left, x2: width - RIGHT, y1: y(levels[i]), y2: y(levels[i]) });
    });
    children(part("y-labels"), "text", levels.length).forEach((label, i) => {
      place(label, { x: left - 6, y: y(levels[i]) + 4, "text-anchor": "end" });
      write(label, number(levels[i]));
    });

    const gap = step > 4 ? 1.5 : 0;
    children(part("bars"), "rect", buckets.length).forEach((bar, i) => {
      const top = y(buckets[i].clicks);
      place(bar, {
        x: left + i * step + gap / 2, width: Math.max(step - gap, 0.5), y: top, height: HEIGHT - BOTTOM - top,
        class: buckets[i].provisional ? "provisional" : "final",
      });
    });

    const ticks = [];
    const fits = (width - left) / TICK_WIDTH;
    const tickStep = TICK_STEPS.find((candidate) => (end - start) / candidate <= fits) ?? DAY;
    for (let at = Math.ceil(start / tickStep) * tickStep; at < end; at += tickStep) ticks.push(at);
    children(part("x-labels"), "text", ticks.length).forEach((label, i) => {
      place(label, { x: x(ticks[i]), y: HEIGHT - 8, "text-anchor": x(ticks[i]) > width - 22 ? "end" : "middle" });
      write(label, timeLabel(ticks[i]));
    });

    const edge = x(final);
    place(part("band"), { x: edge, y: TOP, width: Math.max(width - RIGHT - edge, 0), height: HEIGHT - TOP - BOTTOM });
    place(part("edge"), { x1: edge, x2: edge, y1: TOP, y2: HEIGHT - BOTTOM });
    point();
  }

  /** Shows the chosen bar, if there is one. */
  function point() {
    const index = buckets.findIndex((bucket) => bucket.start === chosen);
    const shown = index >= 0;
    place(part("cursor"), { x: left + Math.max(index, 0) * step, y: TOP, width: shown ? step : 0, height: HEIGHT - TOP - BOTTOM });
    write(readout, shown ? describe(buckets[index]) : "");
  }

  function choose(index) {
    chosen = buckets[Math.min(Math.max(index, 0), buckets.length - 1)]?.start ?? null;
    point();
  }

  const atPointer = (event) => choose(Math.floor((event.clientX - frame.getBoundingClientRect().left - left) / step));
  frame.addEventListener("pointermove", atPointer);
  frame.addEventListener("pointerdown", atPointer);
  frame.addEventListener("pointerleave", () => { chosen = null; point(); });
  frame.addEventListener("keydown", (event) => {
    const now = buckets.findIndex((bucket) => bucket.start === chosen);
    const last = buckets.length - 1;
    const to = {
      ArrowLeft: now < 0 ? last : now - 1, ArrowRight: now < 0 ? last : now + 1, Home: 0, End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(to);
  });
  new ResizeObserver(paint).observe(frame);
  return { draw };
}
