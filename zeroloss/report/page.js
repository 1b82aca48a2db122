"use strict";
(() => {
  const root = document.documentElement;
  const AT_STEP = /<br>at step [^<]*/; // beside an axis of steps
  const panels = JSON.parse(document.getElementById("panels").textContent).map((panel, index) => {
    const element = document.getElementById("panel-" + index);
    return { ...panel, element, section: element.closest(".quantity"), frame: 0 };
  });
  let clock = "slow"; // or "steps"
  // Dragging on a touch screen scrolls the page.
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displayModeBar: false };

  // A copy, for Plotly writes to its arguments, in which "@role" and "@role/opacity" are colours of the page.
  function painted(value, key, style) {
    if (typeof value === "string" && value[0] === "@" && /color|^[01]$/.test(key)) {
      const [role, opacity] = value.slice(1).split("/");
      const hex = style.getPropertyValue("--" + role).trim();
      return opacity === undefined ? hex : hex + Math.round(255 * opacity).toString(16).padStart(2, "0");
    }
    if (Array.isArray(value)) {
      return value[0] === null || (typeof value[0] === "number" && typeof value[1] !== "string") ? [...value] : value.map((each, k) => painted(each, String(k), style));
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, painted(each, name, style)]));
  }

  function draw() {
    const style = getComputedStyle(root);
    const printing = root.classList.contains("printing");
    for (const { data, layout: given, element, section, steps_per_unit: unit, frames, frame } of panels) {
      const layout = painted(given, "", style);
      const inSteps = clock === "steps" && unit !== undefined;
      const stretched = (values) => (inSteps ? values.map((x) => (x === null ? null : x * unit)) : values);
      const hidden = new Set(
        [...section.querySelectorAll('button[aria-pressed="false"]')].map((b) => b.dataset.shows)
      );
      const traces = data.map((trace, index) => ({
        ...painted(trace, "", style),
        ...(trace.x && { x: stretched(trace.x) }),
        ...(frames?.trace === index && { y: frames.y[frame] }),
        ...(inSteps && trace.hovertemplate && { hovertemplate: trace.hovertemplate.replace(AT_STEP, "") }),
        visible: !hidden.has(trace.legendgroup),
      }));
      if (inSteps) {
        layout.xaxis = {
          ...layout.xaxis, title: { ...layout.xaxis.title, text: "training steps k" }, tickformat: "~s",
          range: stretched(layout.xaxis.range), unifiedhovertitle: { text: "step %{x:,.0f}" },
        };
      }
      if (layout.scene) layout.scene.dragmode = touch ? false : "turntable";
      layout.uirevision = inSteps ? "steps" : layout.uirevision;
      layout.width = printing ? element.clientWidth : undefined; // paper does not wait for a resize
      layout.dragmode = touch ? false : "zoom";
      Plotly.react(element, traces, layout, config);
    }
  }

  // Fixed ticks are for the whole panel; within a part of it Plotly finds others.
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
