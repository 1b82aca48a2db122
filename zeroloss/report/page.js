"use strict";
(() => {
  const root = document.documentElement;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
  const AT_STEP = /<br>at step [^<]*/; // beside an axis of steps
  const panels = JSON.parse(document.getElementById("panels").textContent).map((panel, index) => {
    const element = document.getElementById("panel-" + index);
    return { ...panel, element, section: element.closest(".quantity"), frame: 0 };
  });
  let clock = "slow"; // or "steps"
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
      before: { color: color("muted"), width: 1.8, dash: "dot" },
      "training-thin": { color: color("training"), width: 1 },
      "limit-thin": { color: color("limit"), width: 1 },
      "prediction-thin": { color: color("prediction"), width: 1.2 },
    };
    const fills = {
      band: color("band"), "limit-wide": color("wide"), "limit-narrow": color("narrow"), "limit-band": color("limit-band"),
      "training-band": color("band"), "prediction-band": color("prediction") + "30",
    };
    const dot = (name, symbol, size) => ({
      symbol, size, color: color(name), line: { color: color(name), width: symbol.endsWith("-open") ? 1.8 : 0 },
    });
    const markers = {
      points: dot("training", "circle", 8),
      "points-bound": dot("training", "triangle-down-open", 9),
      distance: dot("slow", "square-open", 10),
      "distance-bound": dot("slow", "triangle-down-open", 9),
      data: dot("limit", "circle", 8),
      set: { ...dot("muted", "circle", 3), opacity: 0.6 },
      start: dot("limit", "circle-open", 10),
      "training-ends": dot("training", "x", 6),
      "limit-ends": dot("limit", "circle", 7),
      "training-points": dot("training", "circle", 7),
      "prediction-ends": dot("prediction", "diamond", 7),
      "limit-points": dot("limit", "circle", 7),
      "prediction-points": dot("prediction", "diamond", 7),
    };
    for (let k = 0; k < 7; k++) {
      const own = color("series-" + k);
      lines["series-" + k] = { color: own, width: 2.2 };
      lines["series-" + k + "-thin"] = { color: own, width: 1.4, dash: "dash" };
      fills["series-" + k + "-band"] = own + "30";
      fills["series-" + k + "-thin-band"] = own + "18";
      markers["series-" + k + "-points"] = { symbol: SYMBOLS[k], size: 8, color: own };
      markers["series-" + k + "-cross-points"] = { symbol: "x-thin", size: 9, color: own, line: { color: own, width: 2 } };
      markers["series-" + k + "-thin-points"] = { symbol: SYMBOLS[k] + "-open", size: 10, color: own };
    }
    const axis = (given) => ({
      gridcolor: color("rule"), linecolor: color("muted"), showline: true, zeroline: false,
      ticks: "outside", tickcolor: color("muted"), ticklen: 4, automargin: false, ...given,
    });
    const solid = (given) => ({
      gridcolor: color("rule"), color: color("muted"), backgroundcolor: color("paper"), showbackground: false,
      zeroline: false, ...given,
    });
    for (const { data, layout: given, element, section, steps_per_unit: unit, frames, frame } of panels) {
      const layout = structuredClone(given); // Plotly writes to what it is given
      const inSteps = clock === "steps" && unit !== undefined;
      const stretched = (values) => (inSteps ? values.map((x) => (x === null ? null : x * unit)) : values);
      const hidden = new Set(
        [...section.querySelectorAll('button[aria-pressed="false"]')].map((b) => b.dataset.shows)
      );
      const traces = data.map((trace, index) => {
        const line = lines[trace.meta] ?? { width: 0 };
        const marker = markers[trace.meta] ?? markers[trace.meta + "-points"] ?? { color: line.color, size: 9 };
        return {
          ...trace,
          x: stretched(trace.x),
          ...(frames?.trace === index && { y: frames.y[frame] }),
          ...(inSteps && trace.hovertemplate && { hovertemplate: trace.hovertemplate.replace(AT_STEP, "") }),
          line: trace.type === "scatter3d" ? { ...line, width: 2.5 * line.width, dash: "solid" } : line,
          fillcolor: fills[trace.meta],
          ...(trace.mode !== "lines" && { marker: trace.type === "scatter3d" ? { ...marker, size: 0.6 * marker.size } : marker }),
          ...(trace.error_y && { error_y: { ...trace.error_y, color: marker.color, thickness: 1.5, width: 3 } }),
          visible: !hidden.has(trace.legendgroup),
        };
      });
      const across = inSteps
        ? {
            ...layout.xaxis, title: { ...layout.xaxis.title, text: "training steps k" }, tickformat: "~s",
            range: stretched(layout.xaxis.range), unifiedhovertitle: { text: "step %{x:,.0f}" },
          }
        : layout.xaxis;
      const note = (given) => ({
        ...given, bgcolor: color("paper"),
        font: { size: 12, color: color(given.name ?? "muted") },
      });
      Plotly.react(element, traces, {
        ...layout,
        uirevision: inSteps ? "steps" : layout.uirevision,
        width: printing ? element.clientWidth : undefined, // paper does not wait for a resize
        dragmode: touch ? false : "zoom",
        paper_bgcolor: color("paper"),
        plot_bgcolor: color("paper"),
        font: { family: 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif', size: 12, color: color("muted") },
        hoverlabel: { bgcolor: color("soft"), bordercolor: color("rule"), font: { color: color("ink") } },
        xaxis: axis({ ...across, spikecolor: color("muted"), spikethickness: 1 }),
        yaxis: axis(layout.yaxis),
        annotations: layout.annotations.map(note),
        ...(layout.scene && {
          scene: {
            ...layout.scene, xaxis: solid(layout.scene.xaxis), yaxis: solid(layout.scene.yaxis),
            zaxis: solid(layout.scene.zaxis), dragmode: touch ? false : "turntable",
          },
        }),
        shapes: layout.shapes.map((s) => ({ ...s, x0: stretched([s.x0])[0], x1: stretched([s.x1])[0], line: { color: color("alarm"), width: 1.5, dash: "dashdot" } })),
      }, config);
    }
  }

  // Given ticks are for the whole panel; within a part of it Plotly finds its own.
  const zoomed = (element, given) => () => {
    const wanted = {};
    for (const name of ["xaxis", "yaxis"].filter((each) => given[each].tickvals)) {
      const { range: [low, high], autorange, tickmode } = element.layout[name], all = given[name].range;
      const whole = all ? Math.abs(low - all[0]) + Math.abs(high - all[1]) < 1e-9 : autorange !== false;
      if (tickmode !== (whole ? "array" : "auto")) wanted[name + ".tickmode"] = whole ? "array" : "auto";
    }
    if (Object.keys(wanted).length) Plotly.relayout(element, wanted);
  };

  document.querySelectorAll(".legend button").forEach((button) =>
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
      draw();
    })
  );
  document.querySelectorAll(".clock input").forEach((choice) =>
    choice.addEventListener("change", () => {
      clock = choice.value;
      draw();
    })
  );
  for (const panel of panels.filter(({ frames }) => frames)) {
    const slider = panel.element.parentElement.querySelector("input");
    slider.addEventListener("input", () => {
      panel.frame = Number(slider.value);
      slider.setAttribute("aria-valuetext", panel.frames.labels[panel.frame]);
      slider.parentElement.querySelector("output").value = panel.frames.labels[panel.frame];
      Plotly.restyle(panel.element, { y: [panel.frames.y[panel.frame]] }, [panel.frames.trace]);
    });
  }
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
    if (layout.xaxis.tickvals || layout.yaxis.tickvals) element.on("plotly_relayout", zoomed(element, layout));
  }
})();
