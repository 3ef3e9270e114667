/* Differences between methods with their intervals, filtered by task, method and rival; a row that is chosen is read out.
   Bars are in percent of the whole model's result, because tasks have units of their own. */
(function () {
  "use strict";
  const EDGES = [1, 2, 5, 10, 15, 25, 50, 75, 100, 200]; // percent: where an axis may end

  /** 1: the interval lies above zero, -1: below, 0: it contains zero. */
  function side(row) {
    return (row.low > 0) - (row.high < 0);
  }

  /** The rows of a task (null: all), a group of methods and a rival. */
  function chosen(data, task, group, rival) {
    return data.rows.filter(
      (row) => (task === null || row.task === task) && row.group === group && row.rival === rival,
    );
  }

  function taskOf(data, row) {
    return data.tasks.find((task) => task.name === row.task);
  }

  /** Mean, ends and detectable size in percent of the whole model's result. */
  function percent(data, row) {
    const whole = taskOf(data, row).whole;
    return [row.mean, row.low, row.high, row.detectable].map((value) => (100 * value) / whole);
  }

  /** The end of an axis that holds every interval. */
  function edge(data, rows) {
    const most = Math.max(0, ...rows.flatMap((row) => percent(data, row).slice(0, 3).map(Math.abs)));
    return EDGES.find((end) => end >= most) || Math.ceil(most);
  }

  /** A number with its sign; what is rounded to zero has a plus, as in the tables of the book. */
  function signed(value, digits) {
    const text = Math.abs(value).toFixed(digits);
    return (value < 0 && Number(text) !== 0 ? "−" : "+") + text;
  }

  function interval(values, digits) {
    const [mean, low, high] = values.map((value) => signed(value, digits));
    return `${mean} [${low}, ${high}]`;
  }

  /** What a row says, in pieces for `Live.say`. */
  function said(data, row) {
    const task = taskOf(data, row),
      at = side(row);
    const verdict = ["below", "no difference found", "above"][at + 1];
    const size = `; a true one of ${row.detectable.toFixed(task.digits)} would have been found in four cases of five`;
    return [
      `To ${task.asked}, keep ${task.keep}: ${row.label} minus ${data.rivals[row.rival]}: `,
      [verdict],
      `, ${interval([row.mean, row.low, row.high], task.digits)} in ${task.unit}${at === 0 ? size : ""}. In percent of `,
      `the whole model's result: ${interval(percent(data, row).slice(0, 3), 1)}.`,
    ];
  }

  const forest = { side, chosen, percent, edge, signed, said };
  if (typeof module === "object") {
    module.exports = forest;
    return;
  }
  const { html, svg } = Live;

  /** The bar of a row, in percent of the width of its drawing. */
  function track(data, row, end) {
    const [mean, low, high, size] = percent(data, row),
      at = (value) => `${50 + (48 * value) / end}%`,
      kind = ["worse", "same", "better"][side(row) + 1];
    const tick = (value) => svg("line", { class: "live-size", x1: at(value), x2: at(value), y1: "28%", y2: "72%" });
    const ticks = kind === "same" && size <= end ? [tick(-size), tick(size)] : [];
    return svg(
      "svg",
      { class: `live-track live-${kind}`, "aria-hidden": "true" },
      svg("line", { class: "live-zero", x1: "50%", x2: "50%", y1: "0%", y2: "100%" }),
      ...ticks,
      svg("line", { class: "live-span", x1: at(low), x2: at(high), y1: "50%", y2: "50%" }),
      svg("circle", { cx: at(mean), cy: "50%", r: 4.5 }),
    );
  }

  Live.figure("forest", function (box, data) {
    const names = data.tasks.map((task) => task.name),
      rivals = Object.keys(data.rivals);
    const reading = Live.reading(),
      scale = html("div", { class: "live-edges" }),
      edges = html("div", { class: "live-row", "aria-hidden": "true" }, html("span", {}), scale);
    const list = html("div", {
      class: "live-picker live-rows",
      role: "listbox",
      tabindex: 0,
      "aria-label": "Differences. Arrow keys choose one.",
    });
    let rows = [],
      options = [],
      tracks = [],
      picked = 0;
    const task = Live.choice("Task", ["all", ...names], 0, draw);
    const group = Live.choice("Method", data.groups, data.start.group, draw);
    const rival = Live.choice("Minus", rivals.map((name) => data.rivals[name]), data.start.rival, draw);

    function choose(index) {
      picked = Math.min(Math.max(index, 0), rows.length - 1);
      options.forEach((option, i) => option.setAttribute("aria-selected", String(i === picked)));
      tracks.forEach((one, i) => one.classList.toggle("live-chosen", i === picked));
      list.setAttribute("aria-activedescendant", options[picked].id);
      Live.say(reading, ...said(data, rows[picked]));
    }

    function draw() {
      rows = chosen(data, task.value ? names[task.value - 1] : null, data.groups[group.value], rivals[rival.value]);
      list.hidden = edges.hidden = rows.length === 0;
      if (rows.length === 0) {
        options = tracks = [];
        list.replaceChildren();
        list.removeAttribute("aria-activedescendant");
        Live.say(reading, ["Not run:"], " no such comparison is on record.");
        return;
      }
      const end = edge(data, rows);
      tracks = rows.map((row) => track(data, row, end));
      options = rows.map(function (row, i) {
        const words = html("span", {}, html("b", {}, row.task), " ", row.label);
        const option = html("div", { class: "live-row", role: "option", id: Live.name("row") }, words, tracks[i]);
        option.addEventListener("pointerenter", () => choose(i));
        option.addEventListener("click", () => choose(i));
        return option;
      });
      list.replaceChildren(...options);
      const sides = [`−${end} %`, `0: as ${data.rivals[rivals[rival.value]]}`, `+${end} %`];
      scale.replaceChildren(...sides.map((text) => html("span", {}, text)));
      choose(0);
    }

    list.addEventListener("keydown", function (event) {
      const to = { ArrowUp: picked - 1, ArrowDown: picked + 1, Home: 0, End: rows.length - 1 }[event.key];
      if (to === undefined || rows.length === 0) return;
      event.preventDefault();
      choose(to);
    });
    box.classList.add("live-forest");
    box.append(
      html("div", { class: "live-controls" }, task.element, group.element, rival.element),
      list,
      edges,
      reading,
    );
    draw();
  });
})();
