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
    const printing = root.classList.contains("printing");
    const color = (name) => style.getPropertyValue("--" + name).trim();
    const lines = {
      training: { color: color("training"), width: 2.5 },
      limit: { color: color("limit"), width: 1.8, dash: "dash" },
      prediction: { color: color("prediction"), width: 2, dash: "dashdot" },
      scatter: { color: color("muted"), width: 1.8, dash: "dot" },
      fit: { color: color("training"), width: 1.6 },
      "quantile-wide": { color: color("training"), width: 1, dash: "dot" },
      "quantile-narrow": { color: color("training"), width: 1 },
    };
    const fills = {
      band: color("band"), "limit-wide": color("wide"), "limit-narrow": color("narrow"), "limit-band": color("limit-band"),
    };
    const dot = (name, symbol, size) => ({
      symbol, size, color: color(name), line: { color: color(name), width: symbol.endsWith("-open") ? 1.8 : 0 },
    });
    const markers = {
      points: dot("training", "circle", 8),
      "points-bound": dot("training", "triangle-down-open", 9),
      distance: dot("slow", "square-open", 10),
      "distance-bound": dot("slow", "triangle-down-open", 9),
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
        line: lines[trace.meta] ?? { width: 0 },
        fillcolor: fills[trace.meta],
        ...(trace.meta in markers && { marker: markers[trace.meta] }),
        ...(trace.error_y && { error_y: { ...trace.error_y, color: markers[trace.meta].color, thickness: 1.5, width: 3 } }),
        visible: !hidden.has(trace.legendgroup),
      }));
      const note = (given) => ({
        ...given, bgcolor: color("paper"),
        font: { size: 12, color: color(given.name ?? "muted") },
      });
      Plotly.react(element, traces, {
        ...layout,
        width: printing ? element.clientWidth : undefined, // paper does not wait for a resize
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

  // Given ticks are for the whole panel; within a part of it Plotly finds its own.
  const zoomed = (element, given) => () => {
    const mode = (name) => {
      const [low, high] = element.layout[name].range;
      const whole = Math.abs(low - given[name].range[0]) + Math.abs(high - given[name].range[1]) < 1e-9;
      return whole ? "array" : "auto";
    };
    const wanted = { "xaxis.tickmode": mode("xaxis"), "yaxis.tickmode": mode("yaxis") };
    const now = element.layout;
    if (wanted["xaxis.tickmode"] !== now.xaxis.tickmode || wanted["yaxis.tickmode"] !== now.yaxis.tickmode) {
      Plotly.relayout(element, wanted);
    }
  };

  document.querySelectorAll(".legend button").forEach((button) =>
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
      draw();
    })
  );
  const fit = (printing) => () => {
    root.classList.toggle("printing", printing);
    draw();
    if (!printing) panels.forEach(({ element }) => Plotly.Plots.resize(element));
  };
  addEventListener("beforeprint", fit(true));
  addEventListener("afterprint", fit(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
  for (const { layout, element } of panels) {
    if (layout.xaxis.tickvals) element.on("plotly_relayout", zoomed(element, layout));
  }
})();
