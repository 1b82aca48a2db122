"use strict";
(() => {
  const root = document.documentElement;
  const panels = JSON.parse(document.getElementById("panels").textContent).map((panel, index) => {
    const element = document.getElementById("panel-" + index);
    return { ...panel, element, section: element.closest(".quantity") };
  });
  // Dragging on a touch screen scrolls the page.
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displayModeBar: false,
  };

  function draw() {
    const style = getComputedStyle(root);
    const color = (name) => style.getPropertyValue("--" + name).trim();
    const lines = {
      training: { color: color("training"), width: 2.5 },
      limit: { color: color("limit"), width: 1.8, dash: "dash" },
      scatter: { color: color("muted"), width: 1.8, dash: "dot" },
      band: { width: 0 },
    };
    const axis = (given) => ({
      gridcolor: color("rule"), linecolor: color("muted"), showline: true, zeroline: false,
      ticks: "outside", tickcolor: color("muted"), ticklen: 4, automargin: false, ...given,
    });
    for (const { data, layout, element, section } of panels) {
      const hidden = new Set(
        [...section.querySelectorAll('button[aria-pressed="false"]')].map((b) => b.dataset.shows)
      );
      const traces = data.map((trace) => ({
        ...trace,
        line: lines[trace.meta],
        fillcolor: color("band"),
        visible: !hidden.has(trace.meta === "band" ? "training" : trace.meta),
      }));
      const note = (given) => ({
        ...given, bgcolor: color("paper"),
        font: { size: 12, color: color(given.name === "alarm" ? "alarm" : "muted") },
      });
      Plotly.react(element, traces, {
        ...layout,
        dragmode: touch ? false : "zoom",
        paper_bgcolor: color("paper"),
        plot_bgcolor: color("paper"),
        font: { family: 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif', size: 12, color: color("muted") },
        hoverlabel: { bgcolor: color("soft"), bordercolor: color("rule"), font: { color: color("ink") } },
        xaxis: axis({ ...layout.xaxis, spikecolor: color("muted"), spikethickness: 1 }),
        yaxis: axis(layout.yaxis),
        annotations: layout.annotations.map(note),
        shapes: layout.shapes.map((s) => ({ ...s, line: { color: color("alarm"), width: 1.5, dash: "dashdot" } })),
      }, config);
    }
  }

  document.querySelectorAll(".legend button").forEach((button) =>
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
      draw();
    })
  );
  const fit = (printing) => () => {
    root.classList.toggle("printing", printing);
    draw();
    panels.forEach(({ element }) => Plotly.Plots.resize(element));
  };
  addEventListener("beforeprint", fit(true));
  addEventListener("afterprint", fit(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
