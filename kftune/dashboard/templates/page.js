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

  // The figures hold the colours for light paper; every attribute that is a colour is exchanged on dark paper.
  const recoloured = (value, key) => {
    if (Array.isArray(value)) return value.map((item) => recoloured(item, key));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, recoloured(item, name)]));
    }
    const isColour = typeof value === "string" && /color$/.test(key);
    return isColour && Object.hasOwn(darkOf, value) ? darkOf[value] : value;
  };

  const plots = [...document.querySelectorAll(".plot")].map((element) => ({
    element,
    figure: JSON.parse(element.querySelector("script").textContent),
    hidden: new Set(),
  }));

  const draw = ({ element, figure, hidden }) => {
    const { data, layout } = dark.matches ? recoloured(figure) : figure;
    const shown = data.map((trace) => ({ ...trace, visible: !hidden.has(trace.meta?.optimizer) }));
    // The page has a legend of its own.
    return Plotly.react(element, shown, { ...layout, showlegend: false, autosize: true }, config);
  };

  for (const problem of document.querySelectorAll(".problem")) {
    const inside = plots.filter(({ element }) => problem.contains(element));
    for (const button of problem.querySelectorAll(".legend button")) {
      button.addEventListener("click", () => {
        const isShown = button.getAttribute("aria-pressed") === "true";
        button.setAttribute("aria-pressed", String(!isShown));
        for (const plot of inside) {
          plot.hidden[isShown ? "add" : "delete"](button.dataset.optimizer);
          draw(plot);
        }
      });
    }
  }

  const drawAll = () => Promise.all(plots.map(draw));
  dark.addEventListener("change", drawAll);
  drawAll().then(() => document.documentElement.classList.add("drawn"));
})();
