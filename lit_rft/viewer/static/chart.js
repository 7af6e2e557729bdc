// A chart of one scalar: a line for each run, smoothed, with the values themselves behind it.

const WIDTH = 1000, HEIGHT = 300;

// Exponential moving average without the bias towards its start.
function smooth(values, weight) {
  let last = 0, norm = 0;
  return values.map((value) => {
    last = last * weight + (1 - weight) * value;
    norm = norm * weight + (1 - weight);
    return last / norm;
  });
}

function ticks(low, high, number) {
  const rough = (high - low) / number;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const values = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) values.push(k * step);
  return values;
}

// Significant digits that tell neighbouring ticks apart.
function tickDigits(values) {
  const largest = Math.max(...values.map(Math.abs)), apart = values.length > 1 ? values[1] - values[0] : largest;
  return Math.min(8, Math.ceil(Math.log10(largest / apart) + 1e-9) + 1);
}

function bounds(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  // a constant, up to the rounding of its average
  if (!(high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)))) { const pad = Math.abs(low) * 0.1 || 0.5; return [low - pad, high + pad]; }
  const pad = (high - low) * 0.04;
  return [low - pad, high + pad];
}

class Chart {
  // series: [{run, name, steps, values}]; onopen(step, run): the user wants to see that step's rollouts
  constructor(name, series, onopen) {
    this.name = name; this.series = series; this.onopen = onopen;
    this.readout = h("div", { class: "readout", "aria-live": "polite" });
    this.plot = h("div", {
      class: "plot", tabindex: "0", role: "img", "aria-label": name, onpointermove: (event) => this.point(event), onpointerleave: () => this.rest(),
      onkeydown: (event) => this.key(event), onblur: () => this.rest(), onclick: () => this.open(),
    });
    const enlarge = h("button", { "aria-pressed": "false", title: "Enlarge", "aria-label": `Enlarge ${name}`, onclick: () => {
      enlarge.setAttribute("aria-pressed", this.element.classList.toggle("wide"));
    } }, "⤢");
    this.element = h("article", { class: "chart" },
      h("div", { class: "head" }, h("h3", {}, name), enlarge), this.readout, this.plot);
  }

  draw(weight, runs) {
    this.shown = this.series.filter((line) => runs.has(line.run)).map((line) => ({ ...line, smooth: smooth(line.values, weight) }));
    this.element.classList.toggle("hidden", !this.shown.length);
    if (!this.shown.length) return;
    const steps = this.shown.flatMap((line) => line.steps);
    this.left = Math.min(...extent(steps)); this.right = Math.max(this.left + 1, ...extent(steps));
    [this.low, this.high] = bounds(this.shown.flatMap((line) => (weight > 0 ? [...line.smooth, ...trimmed(line.values)] : line.values)));
    const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const marks = [];
    const values = ticks(this.low, this.high, 5);
    const digits = tickDigits(values);
    for (const value of values) {
      drawing.append(svg("line", { class: "gridline", x1: 0, x2: WIDTH, y1: this.y(value), y2: this.y(value) }));
      marks.push(this.tick("y", show(value, digits), "top", this.y(value) / HEIGHT));
    }
    marks.push(this.tick("x", show(this.left), "left", 0), this.tick("x name", "step", "left", 0.5), this.tick("x", show(this.right), "left", 1));
    for (const line of this.shown) {
      if (weight > 0) drawing.append(this.path(line, line.values, "raw"));
      drawing.append(this.path(line, line.smooth, "line"));
    }
    this.cursor = svg("line", { class: "cursor hidden", y1: 0, y2: HEIGHT });
    drawing.append(this.cursor);
    this.plot.replaceChildren(drawing, ...marks);
    this.rest();
  }

  x(step) { return ((step - this.left) / (this.right - this.left)) * WIDTH; }
  y(value) { return Math.min(HEIGHT * 1.02, Math.max(-HEIGHT * 0.02, HEIGHT - ((value - this.low) / (this.high - this.low)) * HEIGHT)); }

  tick(axis, text, side, share) {
    const mark = h("span", { class: `tick ${axis}`, "aria-hidden": "true" }, text);
    mark.style.setProperty(side, `${share * 100}%`);
    return mark;
  }

  path(line, values, name) {
    const points = values.map((value, k) => `${this.x(line.steps[k]).toFixed(1)} ${this.y(value).toFixed(1)}`);
    const d = points.length > 1 ? `M${points.join("L")}` : `M${points[0]}h4`;
    const path = svg("path", { class: name, d });
    path.style.setProperty("stroke", runColor(line.run));
    return path;
  }

  rest() {
    this.step = null;
    this.cursor?.classList.add("hidden");
    const last = this.shown.map((line) => `${line.name}: ${line.values.length} points, last ${show(line.values.at(-1))}`);
    this.plot.setAttribute("aria-label", `${this.name}. ${last.join("; ")}. Arrow keys read values, Enter opens the step's rollouts.`);
    this.readout.replaceChildren(...this.shown.map((line) => h("span", {}, dot(line.run), `${show(line.smooth.at(-1))}${line.smooth.at(-1) === line.values.at(-1) ? "" : " smoothed"}`)));
  }

  point(event) {
    const box = this.plot.getBoundingClientRect();
    this.move(this.left + ((event.clientX - box.left) / box.width) * (this.right - this.left));
  }

  move(step) {
    const all = this.shown.flatMap((line) => line.steps);
    this.step = all.reduce((best, other) => (Math.abs(other - step) < Math.abs(best - step) ? other : best), all[0]);
    this.cursor.classList.remove("hidden");
    this.cursor.setAttribute("x1", this.x(this.step)); this.cursor.setAttribute("x2", this.x(this.step));
    const values = this.shown.map((line) => {
      const at = line.steps.findLastIndex((other) => other <= this.step);
      const ended = this.step > line.steps.at(-1);
      return h("span", {}, dot(line.run), at < 0 || ended ? "–" : show(line.values[at]));
    });
    this.readout.replaceChildren(h("span", {}, `step ${show(this.step)}`), ...values);
  }

  key(event) {
    const all = [...new Set(this.shown.flatMap((line) => line.steps))].sort((a, b) => a - b);
    const at = this.step == null ? -1 : all.indexOf(this.step);
    const next = { ArrowRight: at + 1, ArrowLeft: at < 0 ? all.length - 1 : at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Enter") this.open();
    else if (next == null) return;
    else this.move(all[Math.min(all.length - 1, Math.max(0, next))]);
    event.preventDefault();
  }

  open() { if (this.step != null) this.onopen(this.step); }
}

function extent(steps) {
  let low = Infinity, high = -Infinity;
  for (const step of steps) { low = Math.min(low, step); high = Math.max(high, step); }
  return [low, high];
}

// The values without the outermost hundredth at each end, which would flatten a smoothed curve.
function trimmed(values) {
  const sorted = [...values].sort((a, b) => a - b), cut = Math.floor(sorted.length / 100);
  return sorted.slice(cut, sorted.length - cut);
}
