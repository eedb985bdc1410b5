"use strict";
(() => {
  const PAGE = 50;
  const COLUMNS = [
    ["id", "run"], ["name", "name"], ["state", "status"], ["source", "began"],
    ["objective", "objective", true], ["evaluations", "evaluations", true],
    ["saved", "saved", true], ["seconds", "seconds", true], ["started", "started"],
  ];
  const byId = (id) => document.getElementById(id);
  const state = { sort: "id", down: true, page: 0, open: null, series: null };
  let data = JSON.parse(byId("data").textContent);
  let runs = new Map();

  // Text only, never markup: names come from users' code.
  const make = (tag, text, kind) => {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    if (kind) node.className = kind;
    return node;
  };
  const number = (value) => value === null || value === undefined ? ""
    : Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(5)).toString();
  const when = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ");
  const began = (run) => [run.source, run.level].filter(Boolean).join(" ");
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  const grid = () => dark() ? "#333c49" : "#d5dbe3";
  const layout = (more) => ({
    margin: { l: 60, r: 20, t: 10, b: 45 }, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", font: { color: dark() ? "#e6ebf2" : "#1c2430" },
    legend: { orientation: "h", y: 1.15 }, barmode: "stack",
    colorway: dark() ? ["#6cb4ff", "#5fd38a", "#ffb86b"] : ["#0b63b5", "#1a7f37", "#b35900"],
    ...more,
    xaxis: { gridcolor: grid(), linecolor: grid(), ...more.xaxis },
    yaxis: { gridcolor: grid(), zerolinecolor: grid(), ...more.yaxis },
  });
  const draw = (id, traces, more) => Plotly.react(byId(id), traces, layout(more),
    { responsive: true, displaylogo: false });

  function totals() {
    byId("store").textContent = data.store;
    const sum = (name) => data.days.reduce((all, day) => all + day[name], 0);
    const list = byId("totals");
    list.replaceChildren();
    for (const [name, value] of [["runs", data.runs.length + data.more],
      ["returned at once", sum("hits")], ["evaluations made", sum("made")],
      ["evaluations saved", sum("saved")]]) {
      const box = make("div");
      box.append(make("dt", name), make("dd", value.toLocaleString("en")));
      list.append(box);
    }
    const days = data.days.map((day) => when(day.day).slice(0, 10));
    draw("savings", [
      { type: "bar", name: "made", x: days, y: data.days.map((day) => day.made) },
      { type: "bar", name: "saved", x: days, y: data.days.map((day) => day.saved) },
    ], { bargap: days.length < 5 ? 0.7 : 0.2, xaxis: { type: "category" }, yaxis: { title: { text: "evaluations" } } });
  }

  function choices(id, values) {
    const select = byId(id), kept = select.value;
    select.replaceChildren(make("option", "all"));
    select.firstChild.value = "";
    for (const value of [...new Set(values)].filter(Boolean).sort()) {
      const option = make("option", value);
      option.value = value;
      select.append(option);
    }
    select.value = [...select.options].some((option) => option.value === kept) ? kept : "";
  }

  const told = (run) => [run.id, run.name, run.what, run.note, run.error,
    ...Object.entries(run.params).flat(), ...Object.entries(run.tags).flat()]
    .join(" ").toLowerCase();

  function chosen() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [status, source, experiment] = ["status", "source", "experiment"].map((id) => byId(id).value);
    const found = data.runs.filter((run) => (!status || run.state === status)
      && (!source || run.source === source) && (!experiment || run.experiment === experiment)
      && words.every((word) => run.told.includes(word)));
    const sign = state.down ? -1 : 1, name = state.sort;
    return found.sort((a, b) => {
      const [x, y] = [a[name], b[name]];
      if (x === y) return 0;
      if (x === null || x === undefined || x === "") return 1;
      if (y === null || y === undefined || y === "") return -1;
      return sign * (x < y ? -1 : 1);
    });
  }

  function head() {
    const row = byId("table").tHead.rows[0];
    row.replaceChildren();
    for (const [name, label, isNumber] of COLUMNS) {
      const cell = make("th", null, isNumber ? "number" : "");
      cell.scope = "col";
      cell.ariaSort = state.sort === name ? (state.down ? "descending" : "ascending") : "none";
      const mark = state.sort === name ? (state.down ? " ↓" : " ↑") : "";
      const button = make("button", label + mark);
      button.type = "button";
      button.addEventListener("click", () => {
        state.down = state.sort === name ? !state.down : true;
        state.sort = name;
        state.page = 0;
        table();
        byId("table").tHead.querySelectorAll("button")[COLUMNS.findIndex((c) => c[0] === name)].focus();
      });
      cell.append(button);
      row.append(cell);
    }
  }

  function link(id) {
    const button = make("button", id.slice(0, 14));
    button.type = "button";
    button.addEventListener("click", () => open(id, true));
    return button;
  }

  function table() {
    head();
    const found = chosen(), pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const body = byId("table").tBodies[0];
    body.replaceChildren();
    for (const run of found.slice(state.page * PAGE, (state.page + 1) * PAGE)) {
      const row = body.insertRow();
      row.insertCell().append(link(run.id));
      row.append(make("td", run.name), make("td", run.state, run.state), make("td", began(run)));
      for (const name of ["objective", "evaluations", "saved", "seconds"])
        row.append(make("td", number(run[name]), "number"));
      row.append(make("td", when(run.started)));
    }
    const more = data.more ? `, ${data.more.toLocaleString("en")} older ones are not on this page` : "";
    byId("count").textContent = `${found.length.toLocaleString("en")} of ${data.runs.length.toLocaleString("en")} runs${more}`;
    byId("where").textContent = `${state.page + 1} of ${pages}`;
    byId("before").disabled = state.page === 0;
    byId("after").disabled = state.page >= pages - 1;
  }

  function curve(run) {
    const curves = data.curves[run.id] || {}, names = Object.keys(curves);
    byId("curve").hidden = byId("series-label").hidden = names.length === 0;
    if (!names.length) return;
    if (!names.includes(state.series)) state.series = names.includes("best") ? "best" : names[0];
    const select = byId("series");
    select.replaceChildren(...names.map((name) => make("option", name)));
    select.value = state.series;
    const { steps, values } = curves[state.series];
    const edge = run.source === "journal" ? run.saved : 0;
    const cut = steps.findIndex((step) => step > edge), split = cut < 0 ? steps.length : cut;
    const shape = state.series === "best" ? "hv" : "linear";
    const kind = run.source === "near" ? "from near" : run.source === "cold" ? "cold" : "new";
    const traces = [];
    if (split > 0 && edge > 0) traces.push({ name: "replayed", x: steps.slice(0, split + 1),
      y: values.slice(0, split + 1), line: { shape, dash: "dot" }, mode: "lines+markers", marker: { size: 3 } });
    traces.push({ name: kind, x: steps.slice(edge > 0 ? split : 0),
      y: values.slice(edge > 0 ? split : 0), line: { shape }, mode: "lines+markers", marker: { size: 3 } });
    const finite = values.filter((value) => value !== null);
    const low = Math.min(...finite), high = Math.max(...finite);
    byId("curve").setAttribute("aria-label",
      `${state.series}: ${finite.length} points from ${number(finite[0])} to ${number(finite[finite.length - 1])}`);
    draw("curve", traces, { showlegend: true, xaxis: { title: { text: run.source ? "evaluations" : "step" } },
      yaxis: { title: { text: state.series }, type: low > 0 && high > 100 * low ? "log" : "linear", exponentformat: "e" } });
  }

  function open(id, focus) {
    const run = runs.get(id);
    if (!run) return;
    state.open = id;
    byId("run").hidden = false;
    byId("h-run").textContent = `${run.name || "run"} ${id.slice(0, 14)}`;
    const rows = [["run", id], ["what", run.what], ["status", run.state], ["error", run.error],
      ["experiment", run.experiment], ["began", began(run)], ["objective", number(run.objective)],
      ["evaluations", number(run.evaluations)], ["saved", number(run.saved)],
      ["seconds", number(run.seconds)], ["started", when(run.started)], ["note", run.note],
      ...Object.entries(run.params).map(([name, value]) => [`params.${name}`, String(value)]),
      ...Object.entries(run.tags).map(([name, value]) => [`tags.${name}`, value])];
    const body = byId("facts").tBodies[0];
    body.replaceChildren();
    for (const [name, value] of rows.filter(([, value]) => value)) {
      const row = body.insertRow(), cell = make("th", name);
      cell.scope = "row";
      row.append(cell, make("td", value));
    }
    const list = byId("lineage"), related = [];
    if (run.parent) related.push(["part of", run.parent]);
    if (run.start) related.push([`${run.source} start from`, run.start]);
    for (const other of data.runs) {
      if (other.start === id) related.push([`${other.source} start of`, other.id]);
      if (other.parent === id) related.push(["has as a part", other.id]);
    }
    list.replaceChildren(...related.slice(0, 40).map(([how, other]) => {
      const item = make("li", `${how} `);
      item.append(runs.has(other) ? link(other) : make("code", other.slice(0, 14)),
        make("span", runs.has(other) ? ` ${runs.get(other).name}` : " (not on this page)"));
      return item;
    }));
    if (related.length > 40) list.append(make("li", `and ${related.length - 40} more`));
    if (!related.length) list.append(make("li", "none"));
    curve(run);
    if (focus) byId("run").focus();
  }

  function books() {
    byId("no-families").hidden = data.families.length > 0;
    fill("families", ["what", "way", "fits", "median evaluations", "90 %", "seconds", "plan"],
      data.families.flatMap((family) => family.ways.map((way) => [family.what, way.way, way.fits,
        way.median, way.p90, way.seconds, way.off ? `switched off (${family.mode})` : family.mode])));
    fill("models", ["model", "argument", "", "part that agrees", "confidence"],
      data.models.flatMap((model) => Object.entries(model.stability).map(([name, values]) =>
        [`${model.what}: ${model.fits} fits`, name, ...values])));
    fill("health", [], Object.entries(data.health).map(([name, value]) => [name, value]));
  }

  function fill(id, names, rows) {
    const table = byId(id);
    if (names.length) {
      const row = make("tr");
      row.append(...names.map((name) => { const cell = make("th", name); cell.scope = "col"; return cell; }));
      table.tHead.replaceChildren(row);
    }
    table.tBodies[0].replaceChildren(...rows.slice(0, 500).map((values) => {
      const row = make("tr");
      row.append(...values.map((value) => typeof value === "number"
        ? make("td", number(value), "number") : make("td", value)));
      return row;
    }));
    if (rows.length > 500) table.tBodies[0].insertRow().append(make("td", `and ${rows.length - 500} more`));
  }

  function show() {
    runs = new Map(data.runs.map((run) => [run.id, run]));
    for (const run of data.runs) run.told = told(run);
    choices("status", data.runs.map((run) => run.state));
    choices("source", data.runs.map((run) => run.source));
    choices("experiment", data.runs.map((run) => run.experiment));
    totals();
    table();
    books();
    if (state.open) open(state.open, false);
  }

  for (const id of ["search", "status", "source", "experiment"])
    byId(id).addEventListener("input", () => { state.page = 0; table(); });
  byId("before").addEventListener("click", () => { state.page -= 1; table(); });
  byId("after").addEventListener("click", () => { state.page += 1; table(); });
  byId("close").addEventListener("click", () => { state.open = null; byId("run").hidden = true; byId("search").focus(); });
  byId("series").addEventListener("change", (event) => { state.series = event.target.value; curve(runs.get(state.open)); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
  if (window.live) setInterval(async () => {
    try {
      const answer = await fetch(window.live);
      if (answer.ok) { data = await answer.json(); show(); }
    } catch { /* the server has gone; what is shown stays */ }
  }, 3000);
})();
