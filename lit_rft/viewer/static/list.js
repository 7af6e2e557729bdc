// A table of any length: only the rows in view are elements.

const ROW = 30;

class VirtualList {
  // columns: [{name, label, number, key(row), cell(row)}]; onselect(row)
  constructor(label, columns, onselect) {
    this.columns = columns; this.onselect = onselect; this.rows = []; this.at = -1; this.sorted = { name: "", down: false };
    this.spacer = h("div", { role: "presentation" });
    this.layer = h("div", { role: "rowgroup" });
    this.body = h("div", { class: "body", role: "presentation", onscroll: () => this.render() }, this.spacer, this.layer);
    this.heads = columns.map((column) => h("span", { role: "columnheader", "aria-sort": "none", class: column.number ? "number" : "" },
      h("button", { onclick: () => this.sort(column) }, column.label)));
    this.element = h("div", {
      class: "grid", role: "grid", tabindex: "0", "aria-label": label, onkeydown: (event) => this.key(event),
    }, h("div", { class: "head row", role: "row" }, this.heads), this.body);
    new ResizeObserver(() => this.render()).observe(this.body);
  }

  set(rows) {
    const selected = this.rows[this.at];
    this.rows = rows;
    if (this.sorted.name) this.order();
    this.at = this.rows.indexOf(selected);
    this.element.setAttribute("aria-rowcount", rows.length + 1);
    this.spacer.style.height = `${rows.length * ROW}px`;
    this.body.scrollTop = this.at < 0 ? 0 : Math.max(0, this.at * ROW - this.body.clientHeight / 2);
    this.render();
  }

  sort(column) {
    this.sorted = { name: column.name, down: this.sorted.name === column.name && !this.sorted.down };
    this.columns.forEach((other, k) => this.heads[k].setAttribute("aria-sort", other !== column ? "none" : this.sorted.down ? "descending" : "ascending"));
    this.set([...this.rows]);
  }

  order() {
    const { key } = this.columns.find((column) => column.name === this.sorted.name);
    const sign = this.sorted.down ? -1 : 1;
    this.rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return sign * (typeof x === "number" ? x - y : collator.compare(x, y)) || a - b;
    });
  }

  render() {
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW) - 4);
    const last = Math.min(this.rows.length, Math.ceil((this.body.scrollTop + this.body.clientHeight) / ROW) + 4);
    const elements = [];
    for (let place = first; place < last; place++) {
      const row = this.rows[place];
      const element = h("div", {
        class: "row", role: "row", id: `row-${row}`, "aria-rowindex": place + 2, "aria-selected": place === this.at, onclick: () => this.select(place),
      }, this.columns.map((column) => h("span", { role: "gridcell", class: [column.number && "number", column.class?.(row)].filter(Boolean).join(" ") }, column.cell(row))));
      element.style.top = `${place * ROW}px`;
      elements.push(element);
    }
    this.layer.replaceChildren(...elements);
    const active = this.at >= first && this.at < last;
    if (active) this.element.setAttribute("aria-activedescendant", `row-${this.rows[this.at]}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  select(place, tell = true) {
    if (!(place >= 0 && place < this.rows.length)) return;
    this.at = place;
    const top = place * ROW, height = this.body.clientHeight;
    if (top < this.body.scrollTop) this.body.scrollTop = top;
    else if (top + ROW > this.body.scrollTop + height) this.body.scrollTop = top + ROW - height;
    this.render();
    if (tell) this.onselect(this.rows[place]);
  }

  key(event) {
    if (event.target !== this.element) return;
    const page = Math.max(1, Math.floor(this.body.clientHeight / ROW) - 1), end = this.rows.length - 1;
    const next = { ArrowDown: this.at + 1, ArrowUp: this.at - 1, PageDown: this.at + page, PageUp: this.at - page, Home: 0, End: end }[event.key];
    if (next == null) return;
    event.preventDefault();
    this.select(Math.min(end, Math.max(0, next)));
  }
}
