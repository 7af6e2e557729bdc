// Elements. Texts become text nodes, never markup: whatever a model wrote is shown, not interpreted.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "color") element.style.setProperty("--color", value);
    else if (name.startsWith("aria-") && value != null) element.setAttribute(name, String(value));
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
const svg = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

function show(number, digits = 3) {
  if (number == null || !Number.isFinite(number)) return "–";
  if (number === 0) return "0";
  const size = Math.abs(number);
  if (size >= 1e6 || size < 1e-3) return number.toExponential(2).replaceAll("-", "−");
  const text = Number.isInteger(number) ? String(number) : String(Number(number.toPrecision(Math.max(digits, 3))));
  return text.replaceAll("-", "−");
}

const runColor = (number) => `var(--run-${number % 8})`;
const dot = (run) => h("span", { class: "dot", color: runColor(run), "aria-hidden": "true" });

// A select with its label; the first option is all of them.
function choice(label, options, onchange, all = "all") {
  const select = h("select", { onchange: () => onchange(select.value) });
  for (const [value, text] of [...(all ? [["", all]] : []), ...options]) select.append(h("option", { value }, text));
  return { element: h("label", {}, label, select), select };
}
