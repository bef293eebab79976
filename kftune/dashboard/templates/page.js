"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const darkOf = JSON.parse(document.getElementById("palette").textContent);
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: "hover",
    // Named one by one: Plotly's own choice has a button that uploads the data.
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
    showSendToCloud: false,
    plotlyServerURL: "",
    toImageButtonOptions: { format: "svg" },
  };
  const read = (element) => JSON.parse(element.textContent);
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const clean = (text) => escaped(text).replaceAll("%{", "%\u200b{");

  // Arrays come as Plotly takes them: a type and bytes.
  const TYPES = { f4: Float32Array, f8: Float64Array, u1: Uint8Array, u2: Uint16Array, i4: Int32Array };
  const unpacked = (value) => {
    if (value === null || value === undefined || value.bdata === undefined) return value ?? [];
    const bytes = Uint8Array.from(atob(value.bdata), (letter) => letter.charCodeAt(0));
    return new TYPES[value.dtype](bytes.buffer);
  };

  // The figures hold the colours for light paper; every attribute that is a colour is exchanged on dark paper.
  const exchanged = (value) => (Object.hasOwn(darkOf, value) ? darkOf[value] : value);
  const recoloured = (value, key) => {
    if (Array.isArray(value)) return value.map((item) => recoloured(item, key));
    if (ArrayBuffer.isView(value)) return value;
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, recoloured(item, name)]));
    }
    return typeof value === "string" && /color(scale)?$/.test(key) ? exchanged(value) : value;
  };

  // -- what is known of a trial, for the reader who points at it ------------------------------------------------------

  let trials = {};
  const rowOf = (study, trial) => {
    const table = trials[study];
    const row = table?.trials[table.numbers === null ? trial : table.numbers.indexOf(trial)] ?? [];
    return { names: table?.names ?? [], table, row };
  };
  const described = (study, trial) => {
    const { table, row } = rowOf(study, trial);
    if (row.length === 0) return "";
    const [isRandom, value, outcomes, ...params] = row;
    const lines = [
      `<b>${clean(table.optimizer)}</b>, trial ${trial}${isRandom ? " (random)" : ""}`,
      `${clean(table.objective)} ${clean(value)}`,
    ];
    if (outcomes) lines.push(`runs: ${clean(outcomes)}`);
    table.names.forEach((name, i) => params[i] !== "" && lines.push(`${clean(name)} = ${clean(params[i])}`));
    return lines.join("<br>");
  };
  const withHover = (trace) => {
    const { study, trial, more } = trace.meta ?? {};
    if (study === undefined) return trace;
    const numbers = trial === undefined ? [...unpacked(trace.customdata)] : null;
    const rest = `${more ? `<br>${more}` : ""}<extra></extra>`;
    // In a template Plotly knows texts of points, not one for the whole trace.
    if (!numbers) return { ...trace, hovertemplate: `${described(study, trial)}${rest}` };
    const hovertext = numbers.map((n) => described(study, n));
    return { ...trace, hovertext, hovertemplate: `%{hovertext}${rest}` };
  };

  // -- plots: drawn when they come into view ----------------------------------------------------------------------------

  const plots = new Map(); // element → what it shows
  const hidden = new Map(); // id of a section → optimizers that are not shown in it
  const hiddenIn = (element) => hidden.get(element.closest(".problem")?.id) ?? new Set();

  // What the reader sees of a figure: axis → where they zoomed or moved to, and what dragging does.
  const remember = (plot, change) => {
    if (change.dragmode) plot.view.dragmode = change.dragmode;
    for (const key of Object.keys(change)) {
      const axis = /^([xy]axis\d*)\./.exec(key)?.[1];
      if (!axis) continue;
      const own = plot.figure.layout[axis] ?? {};
      const { autorange, range } = plot.element.layout[axis];
      if (autorange || String(own.range) === String(range)) plot.view.axes.delete(axis);
      else plot.view.axes.set(axis, { range: [...range], type: own.type });
    }
  };
  const rangesOf = (plot, layout) => [...plot.view.axes].filter(([axis, { type }]) => layout[axis]?.type === type);
  const updateOf = (plot, layout) => ({
    ...(plot.view.dragmode && { dragmode: plot.view.dragmode }),
    ...Object.fromEntries(rangesOf(plot, layout).map(([axis, { range }]) => [`${axis}.range`, [...range]])),
  });
  const withView = (plot, layout) => ({
    ...layout,
    ...(plot.view.dragmode && { dragmode: plot.view.dragmode }),
    ...Object.fromEntries(
      rangesOf(plot, layout).map(([axis, { range }]) => [axis, { ...layout[axis], range: [...range], autorange: false }]),
    ),
  });

  const draw = (plot) => {
    if (!plot.isDrawn) {
      plot.figure = read(plot.element.querySelector("script"));
      plot.figure.data = plot.figure.data.map(withHover);
      plot.isDrawn = true;
    }
    const { data, layout } = plot.figure;
    const off = hiddenIn(plot.element);
    const shown = (plot.data ?? data).map((trace) => ({ ...trace, visible: !off.has(trace.meta?.optimizer) }));
    // What the reader zoomed to comes after the first drawing, so that "Reset axes" leads back to the whole figure.
    const seen = plot.isPlotted ? withView(plot, layout) : layout;
    const whole = { data: shown, layout: { ...seen, shapes: [...(layout.shapes ?? []), ...(plot.shapes ?? [])] } };
    // A copy: Plotly writes into the layout it is given.
    const coloured = dark.matches ? recoloured(whole) : { ...whole, layout: structuredClone(whole.layout) };
    // The page has a legend of its own.
    const made = Plotly.react(plot.element, coloured.data, { ...coloured.layout, showlegend: layout.showlegend === true, autosize: true, height: undefined }, config);
    return made.then(() => {
      if (plots.get(plot.element) !== plot) return; // exchanged for a newer one
      if (!plot.isPlotted) {
        plot.isPlotted = true;
        plot.element.on("plotly_relayout", (change) => remember(plot, change));
        const update = updateOf(plot, layout);
        if (Object.keys(update).length) return Plotly.relayout(plot.element, update);
      }
    }).then(() => plot.element.classList.add("drawn"));
  };
  const isInView = (element) => {
    const box = element.getBoundingClientRect();
    return element.checkVisibility() && box.bottom > 0 && box.top < innerHeight;
  };
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        const plot = plots.get(target);
        if (isIntersecting && plot && !plot.isDrawn) draw(plot);
      }
    },
    { rootMargin: "400px" },
  );
  const redraw = (inside) => {
    for (const plot of plots.values()) if (plot.isDrawn && (!inside || inside.contains(plot.element))) draw(plot);
  };
  const collect = (root) => {
    for (const element of root.querySelectorAll(".plot")) {
      plots.set(element, { element, isDrawn: false, view: { axes: new Map() } });
      watcher.observe(element);
    }
  };

  // -- optimizers on and off --------------------------------------------------------------------------------------------

  const legends = () => {
    for (const problem of document.querySelectorAll(".problem")) {
      const off = hidden.get(problem.id) ?? new Set();
      hidden.set(problem.id, off);
      for (const button of problem.querySelectorAll(".legend button")) {
        button.addEventListener("click", () => {
          const isShown = button.getAttribute("aria-pressed") === "true";
          button.setAttribute("aria-pressed", String(!isShown));
          off[isShown ? "add" : "delete"](button.dataset.optimizer);
          redraw(problem);
          for (const slider of problem.querySelectorAll(".slider")) slide(slider);
        });
      }
    }
  };

  // -- views of which one is shown --------------------------------------------------------------------------------------

  const chosen = new Map();
  const choose = (chooser) => {
    const { key } = chooser.dataset;
    const buttons = [...chooser.querySelectorAll(":scope > .choices > button")];
    const show = (name) => {
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.choice === name));
      for (const view of chooser.querySelectorAll(":scope > .choice")) view.hidden = view.dataset.choice !== name;
      for (const plot of plots.values()) {
        if (chooser.contains(plot.element) && plot.isDrawn && plot.element.checkVisibility()) draw(plot);
      }
    };
    for (const button of buttons) {
      button.addEventListener("click", () => {
        chosen.set(key, button.dataset.choice);
        show(button.dataset.choice);
      });
    }
    if (buttons.some((button) => button.dataset.choice === chosen.get(key))) show(chosen.get(key));
  };

  // -- the budget slider ------------------------------------------------------------------------------------------------

  const sliders = new WeakMap(); // element → its data
  const places = new Map(); // id of a panel → where its slider stands, counted from the end

  const loadSlider = (element) => {
    if (!sliders.has(element)) {
      const data = read(element.querySelector(".slider-data"));
      for (const study of data.studies) {
        study.numbers = unpacked(study.numbers);
        study.startup = unpacked(study.startup);
        study.failedAt = unpacked(study.failedAt);
        study.kind = unpacked(study.kind);
        study.values = study.values.map(unpacked);
        study.bestValues = unpacked(study.bestValues);
      }
      sliders.set(element, data);
    }
    return sliders.get(element);
  };

  // What no eye can see is left out, as in the figure that the page came with.
  const visible = (x, y, kinds, steps = 400, atStart = 25) => {
    const n = x.length;
    if (n <= steps) return x.map((_, i) => i);
    let low = Infinity, high = -Infinity;
    for (const value of y) { low = Math.min(low, value); high = Math.max(high, value); }
    const width = (x[n - 1] - x[0]) / steps, height = (high - low) / steps;
    const kept = Array.from({ length: atStart }, (_, i) => i);
    for (let i = atStart; i < n; i++) {
      const last = kept[kept.length - 1];
      const isFar = x[i] - x[last] >= width || Math.abs(y[i] - y[last]) >= height;
      if (isFar || kinds[i] !== kinds[last] || i === n - 1) kept.push(i);
    }
    return kept;
  };

  const sortedAt = (study, place, time) => {
    const values = study.values[place];
    const failed = (i) => study.failedAt[i] <= time;
    const order = Array.from(values, (_, i) => i);
    const key = (i) => (Number.isNaN(values[i]) ? Infinity : values[i]);
    order.sort((a, b) => key(a) - key(b) || failed(a) - failed(b) || study.numbers[a] - study.numbers[b]);
    return { values, failed, order };
  };

  const slidTrace = (trace, study, { values, failed, order }, data) => {
    const y = order.map((i) => (Number.isNaN(values[i]) ? data.worst : values[i]));
    const x = order.map((_, rank) => (100 * (rank + 1)) / order.length);
    const kinds = order.map((i) => (failed(i) ? study.kind[i] : 0));
    const kept = visible(x, data.isLog ? y.map(Math.log) : y, kinds);
    const symbol = kept.map((k) => data.symbols[kinds[k]] + (study.startup[order[k]] ? "-open" : ""));
    const numbers = kept.map((k) => study.numbers[order[k]]);
    return withHover({
      ...trace,
      x: kept.map((k) => x[k]),
      y: kept.map((k) => y[k]),
      customdata: numbers,
      marker: { ...trace.marker, symbol },
      meta: { ...trace.meta, more: `at this budget ${data.objective} %{y:.4g}` },
    });
  };

  const rankingTable = (element, data, ranked) => {
    const body = element.querySelector("tbody");
    const head = element.querySelector("thead");
    const row = (cells, tag) => {
      const tr = document.createElement("tr");
      for (const [text, kind] of cells) {
        const cell = document.createElement(tag);
        cell.className = kind;
        cell.textContent = text;
        tr.append(cell);
      }
      return tr;
    };
    const columns = [["place", "number"], ["optimizer", "text"], [data.objective, "number"], ["trial", "number"], ["best configuration", "text"]];
    head.replaceChildren(row(columns, "th"));
    body.replaceChildren(
      ...ranked.map(({ study, best, loss }, i) => {
        const isKnown = best !== null;
        const { names, row: its } = rowOf(study.study, best);
        const params = its.slice(3).flatMap((value, k) => (value === "" ? [] : [`${names[k]} = ${value}`]));
        return row([
          [isKnown ? i + 1 : "–", "number"],
          [study.optimizer, "text"],
          [isKnown ? loss : "–", "main"],
          [best ?? "–", "number"],
          [params.join(", ") || "no trial has ended well", "text wrap"],
        ], "td");
      }),
    );
  };

  const slide = (element) => {
    const data = loadSlider(element);
    const input = element.querySelector("input");
    const place = Number(input.value);
    const time = data.times[place];
    places.set(element.closest("[data-part]").id, place - (data.times.length - 1));
    const words = `seen at ${data.places[place]}, tuned for ${data.places[data.places.length - 1]}`;
    element.querySelector("output").textContent = words;
    input.setAttribute("aria-valuetext", words);
    const off = hiddenIn(element);
    const at = new Map(data.studies.map((study) => [study.optimizer, { study, ...sortedAt(study, place, time) }]));
    const ranked = data.studies
      .filter((study) => !off.has(study.optimizer))
      .map((study) => ({ study, best: study.best[place], loss: study.bestLosses[place], value: study.bestValues[place] }))
      .sort((a, b) => (a.best === null) - (b.best === null) || a.value - b.value);
    rankingTable(element, data, ranked);
    const sorted = plots.get(element.querySelector("[data-role=sorted]"));
    if (sorted?.isDrawn) {
      sorted.data = sorted.figure.data.map((trace) => {
        const found = at.get(trace.meta?.optimizer);
        return found ? slidTrace(trace, found.study, found, data) : trace;
      });
      draw(sorted);
    }
    const beside = plots.get(element.querySelector("[data-role=beside]"));
    if (beside) {
      beside.shapes = [{ type: "line", xref: "x", x0: time, x1: time, yref: "paper", y0: 0, y1: 1, line: { color: data.line, width: 1.5, dash: "dot" } }];
      if (beside.isDrawn) draw(beside);
    }
  };
  const prepareSlider = (element) => {
    const input = element.querySelector("input");
    const back = places.get(element.closest("[data-part]").id) ?? 0;
    input.value = String(Math.max(0, Number(input.max) + back));
    let waits = false;
    input.addEventListener("input", () => {
      if (waits) return;
      waits = true;
      requestAnimationFrame(() => { waits = false; slide(element); });
    });
    const sorted = element.querySelector("[data-role=sorted]");
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      const plot = plots.get(sorted);
      if (plot && !plot.isDrawn) draw(plot);
      slide(element);
    }, { rootMargin: "400px" }).observe(element);
  };

  const prepare = (root) => {
    collect(root);
    root.querySelectorAll(".chooser").forEach(choose);
    root.querySelectorAll(".slider").forEach(prepareSlider);
  };

  // -- news from the server ---------------------------------------------------------------------------------------------

  // A part that the reader is using waits for the next news: a drag would be lost, a key that is held down, or, for half
  // a minute, the text that is selected.
  let pressed = null, typed = { target: null, at: -Infinity };
  const release = () => { pressed = null; };
  addEventListener("pointerdown", ({ target }) => { pressed = target; }, true);
  addEventListener("pointermove", ({ buttons }) => { if (buttons === 0) release(); }, true);
  addEventListener("pointerup", release, true);
  addEventListener("pointercancel", release, true);
  addEventListener("keydown", ({ target }) => { typed = { target, at: performance.now() }; }, true);
  let selectedAt = -Infinity;
  document.addEventListener("selectionchange", () => { selectedAt = performance.now(); });
  const isSelected = (element) => {
    const selection = getSelection();
    return !selection.isCollapsed && selection.containsNode(element, true) && performance.now() - selectedAt < 30000;
  };
  const isUsed = (element) => element.contains(pressed) || isSelected(element)
    || (element.contains(typed.target) && performance.now() - typed.at < 1500);

  // What stands at the same place in the part as it was and as it is; nothing if there is more or less of it.
  const pairs = (old, added, selector) => {
    const own = (root) => [...root.querySelectorAll(selector)].filter((element) => !element.parentElement.closest(".plot"));
    const [before, after] = [own(old), own(added)];
    return before.length === after.length ? before.map((element, i) => [element, after[i]]) : [];
  };

  const exchangePart = (old, fresh) => {
    const { height } = old.getBoundingClientRect();
    const focused = document.activeElement;
    const scrolled = new Map([...old.querySelectorAll(".scroll, pre")].map((box) => [box, [box.scrollLeft, box.scrollTop]]));
    const views = new Map([...old.querySelectorAll(".plot")].map((element) => [element, plots.get(element).view]));
    for (const element of old.querySelectorAll(".plot")) {
      if (plots.get(element).isDrawn) Plotly.purge(element);
      plots.delete(element);
      watcher.unobserve(element);
    }
    const added = document.adoptNode(fresh);
    // As high as before until it is drawn, so that nothing jumps under the reader's eyes.
    added.style.minHeight = `${height}px`;
    old.replaceWith(added);
    for (const [before, after] of pairs(old, added, "details")) after.open = before.open;
    prepare(added);
    for (const [before, after] of pairs(old, added, ".plot")) plots.get(after).view = views.get(before);
    for (const [before, after] of pairs(old, added, ".slider")) if (sliders.has(before)) slide(after);
    for (const [before, after] of pairs(old, added, ".scroll, pre")) [after.scrollLeft, after.scrollTop] = scrolled.get(before);
    for (const [before, after] of pairs(old, added, "button, input, summary, [tabindex]")) {
      if (before === focused) after.focus({ preventScroll: true });
    }
    const near = [...added.querySelectorAll(".plot")].filter(isInView).map((element) => draw(plots.get(element)));
    Promise.all(near).then(() => { added.style.minHeight = ""; });
  };

  const exchange = (main) => {
    const now = document.querySelector("main");
    if (main.dataset.structure !== now.dataset.structure) {
      if (!isUsed(now)) location.reload();
      return;
    }
    trials = read(main.querySelector("#trials"));
    now.querySelector("#trials").replaceWith(document.adoptNode(main.querySelector("#trials")));
    let isWhole = true;
    for (const fresh of main.querySelectorAll("[data-part]")) {
      const old = document.getElementById(fresh.id);
      if (!old || old.dataset.hash === fresh.dataset.hash) continue;
      if (isUsed(old)) isWhole = false;
      else exchangePart(old, fresh);
    }
    if (isWhole) now.dataset.live = main.dataset.live;
  };
  const follow = () => {
    const main = document.querySelector("main[data-live]");
    if (!main) return;
    const status = main.querySelector(".live");
    const say = (text) => { if (status.textContent !== text) status.textContent = text; };
    const ask = async () => {
      try {
        const answer = await fetch("revision", { cache: "no-store" });
        const { revision } = await answer.json();
        if (revision !== main.dataset.live) {
          const page = await fetch("main", { cache: "no-store" });
          exchange(new DOMParser().parseFromString(await page.text(), "text/html").querySelector("main"));
        }
        say("live");
      } catch {
        say("the server does not answer; this is its last page");
      }
      setTimeout(ask, Number(main.dataset.every ?? 2000));
    };
    setTimeout(ask, 1000);
  };

  trials = read(document.getElementById("trials"));
  legends();
  prepare(document);
  dark.addEventListener("change", () => redraw());
  addEventListener("beforeprint", () => { for (const plot of plots.values()) if (plot.element.checkVisibility()) draw(plot); });
  const first = [...plots.values()].filter(({ element }) => isInView(element));
  Promise.all(first.map(draw)).then(() => document.documentElement.classList.add("drawn"));
  follow();
})();
