/* The energy of every patch under a margin that moves, and the cosines that it is made of. */
(function () {
  "use strict";
  const { html, svg, bytes } = Live,
    { cosines, energies, descending } = LiveMethods;
  const SIDE = 14,
    STEP = 0.005,
    BIN = 0.025;
  const WIDE = 360,
    HIGH = 250,
    LEFT = 8,
    RIGHT = 352,
    FLOOR = 208,
    TOP = 26; // the histogram

  /** Rows of signed bytes. */
  function rows(packed, count) {
    const all = new Int8Array(bytes(packed).buffer),
      width = all.length / count;
    return Array.from({ length: count }, (_, i) => Array.from(all.subarray(i * width, (i + 1) * width)));
  }

  function shade(palette, value, low, high) {
    const level = high > low ? (value - low) / (high - low) : 0.5;
    return palette[Math.round(Math.min(Math.max(level, 0), 1) * (palette.length - 1))];
  }

  /** A histogram of cosines; those at and above the margin are blue. `show(values, margin, words)`. */
  function histogram(low) {
    const bins = Math.round((1 - low) / BIN),
      x = (cos) => LEFT + ((cos - low) / (1 - low)) * (RIGHT - LEFT);
    const wide = (RIGHT - LEFT) / bins;
    const bars = svg("g", { "shape-rendering": "crispEdges" }),
      line = svg("line", { class: "live-margin", y1: TOP - 6, y2: FLOOR });
    const mark = svg("text", { y: TOP - 12, "text-anchor": "middle" }),
      drawing = svg(
        "svg",
        { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" },
        bars,
        svg("line", { class: "live-axis", x1: LEFT, x2: RIGHT, y1: FLOOR, y2: FLOOR }),
        line,
        mark,
      );
    for (let tick = Math.ceil(low * 4) / 4; tick <= 1; tick += 0.25) {
      drawing.append(
        svg(
          "text",
          { x: Math.min(x(tick), RIGHT - 4), y: FLOOR + 16, "text-anchor": "middle" },
          String(tick).replace("-", "−"),
        ),
      );
    }
    drawing.append(svg("text", { x: (LEFT + RIGHT) / 2, y: FLOOR + 35, "text-anchor": "middle" }, "cosine"));
    function show(values, margin, words) {
      const below = new Array(bins).fill(0),
        above = new Array(bins).fill(0);
      for (const value of values) {
        const bin = Math.min(Math.max(Math.floor((value - low) / BIN), 0), bins - 1);
        (value >= margin ? above : below)[bin] += 1;
      }
      const most = Math.max(...below.map((n, i) => n + above[i])),
        high = (n) => (n / most) * (FLOOR - TOP);
      bars.replaceChildren();
      below.forEach(function (n, i) {
        const at = { x: LEFT + i * wide + 0.5, width: wide - 1 };
        if (n) bars.append(svg("rect", { ...at, class: "live-below", y: FLOOR - high(n), height: high(n) }));
        if (above[i])
          bars.append(
            svg("rect", { ...at, class: "live-above", y: FLOOR - high(n + above[i]), height: high(above[i]) }),
          );
      });
      line.setAttribute("x1", x(margin));
      line.setAttribute("x2", x(margin));
      mark.setAttribute("x", Math.min(Math.max(x(margin), LEFT + 28), RIGHT - 28));
      mark.textContent = `m = ${+margin.toFixed(3)}`;
      drawing.setAttribute("aria-label", words);
    }
    return { drawing, show };
  }

  /** The photograph in grey under one colour per patch. */
  function heatMap(data, pick) {
    const [down, across] = data.grid,
      size = [across * SIDE, down * SIDE];
    const cells = svg("g", { "fill-opacity": 0.78, "shape-rendering": "crispEdges" });
    for (let p = 0; p < down * across; p++) {
      cells.append(
        svg("rect", { x: (p % across) * SIDE, y: Math.floor(p / across) * SIDE, width: SIDE, height: SIDE }),
      );
    }
    const outline = svg("path", { class: "live-outline", style: "stroke-width:1.6px" });
    const halo = svg("path", { class: "live-mark-halo" }),
      mark = svg("path", { class: "live-mark" });
    const photo = svg("image", { href: data.photo, width: size[0], height: size[1], class: "live-grey" });
    const drawing = Live.stacked(size, photo, cells, outline, halo, mark);
    const picker = Live.picker(drawing, down, across, "Energy of the patches", pick);
    const low = html("b", { style: "font-weight:400" }),
      high = low.cloneNode();
    const stops = [0, 1, 2, 3, 4].map((i) => data.palette[Math.round((i / 4) * (data.palette.length - 1))]);
    const bar = html("span", { style: `background:linear-gradient(90deg,${stops.join(",")})` });
    const element = html("div", {}, picker.element, html("div", { class: "live-scale" }, low, bar, high));
    function show(values, mergeable, chosen, words) {
      const smallest = Math.min(...values),
        largest = Math.max(...values);
      Array.from(cells.children).forEach((cell, p) =>
        cell.setAttribute("fill", shade(data.palette, values[p], smallest, largest)),
      );
      const inside = (p) => p >= 0 && mergeable.has(p);
      outline.setAttribute(
        "d",
        Live.borders(down, across, SIDE, (p, q) => inside(p) !== inside(q)),
      );
      [halo, mark].forEach((path) => path.setAttribute("d", Live.squares([chosen], across, SIDE)));
      low.textContent = Live.decimal(smallest);
      high.textContent = Live.decimal(largest);
      drawing.setAttribute("aria-label", words);
      picker.value = chosen;
    }
    return { element, show };
  }

  Live.figure("energy", function (box, data) {
    const [down, across] = data.grid,
      count = down * across;
    const known = new Map(); // cosines by layer, computed when the layer is first shown
    function cosinesOf(i) {
      if (!known.has(i)) known.set(i, cosines(rows(data.layers[i].keys, count)));
      return known.get(i);
    }
    let chosen = data.start.patch;
    const margins = Array.from({ length: Math.round(1 / STEP) }, (_, i) => +(i * STEP).toFixed(3));
    const layer = Live.slider(
      "layer",
      data.layers.map((l) => String(l.layer)),
      data.start.layer,
      schedule,
    );
    const margin = Live.slider("margin m =", margins.map(String), 0, draw);
    const of = Live.choice("Histogram", ["this patch", "all pairs"], 0, draw);
    const what = Live.choice("Map", ["energy", "cosine to this patch"], 0, draw);
    const back = Live.button("", schedule);
    const map = heatMap(data, function (patch) {
      chosen = patch;
      draw();
    });
    const bars = histogram(data.lowest),
      reading = Live.reading();
    const legend = html(
      "p",
      { class: "live-note live-legend" },
      html("span", {}, html("span", { class: "live-dot live-pitome" }), "at or above m: adds its cosine"),
      html(
        "span",
        {},
        html("span", { class: "live-dot", style: "background:var(--live-quiet);opacity:.55" }),
        "below m: subtracts up to 1",
      ),
    );

    function schedule() {
      margin.value = Math.round(data.layers[layer.value].margin / STEP);
      draw();
    }
    function draw() {
      const m = margins[margin.value],
        cos = cosinesOf(layer.value),
        energy = energies(cos, m),
        order = descending(energy);
      const top = new Set(order.slice(0, data.mergeable)),
        row = cos[chosen],
        above = row.filter((x) => x >= m);
      const plus = above.reduce((a, b) => a + b, 0) / count,
        rank = order.indexOf(chosen) + 1;
      const where = Live.place(chosen, across);
      back.textContent = `m of layer ${data.layers[layer.value].layer}: ${+data.layers[layer.value].margin.toFixed(3)}`;
      const pairs = of.value ? cos.flatMap((r, i) => r.slice(i + 1)) : row;
      const share = pairs.filter((x) => x >= m).length / pairs.length;
      map.show(
        what.value ? row : energy,
        top,
        chosen,
        what.value
          ? `Cosine of each patch to ${where}`
          : `Energy of each patch at margin ${m}; the ${data.mergeable} of highest energy are outlined`,
      );
      bars.show(
        pairs,
        m,
        `Cosines of ${of.value ? "all pairs" : where}: ${Math.round(100 * share)} % at or above ${m}`,
      );
      const all = of.value
        ? ` Of all pairs ${(100 * share).toFixed(share > 0.995 || share < 0.005 ? 1 : 0)} % are at or above m.`
        : "";
      Live.say(
        reading,
        `Patch in ${where}: ${above.length} of ${count} cosines are at or above m and add ${plus.toFixed(2)}, ` +
          `the others subtract ${(plus - energy[chosen]).toFixed(2)}: `,
        [`energy ${Live.decimal(energy[chosen])}`],
        `, rank ${rank} of ${count}, ${rank <= data.mergeable ? "may merge" : "protected"}.${all}`,
      );
    }

    box.append(
      html("div", { class: "live-controls" }, layer.element, margin.element, back),
      html("div", { class: "live-controls" }, what.element, of.element),
      html("div", { class: "live-two" }, map.element, html("div", {}, bars.drawing, legend)),
      reading,
    );
    schedule();
  });
})();
