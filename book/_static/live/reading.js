/* In which order, and at which positions, a language model reads the tokens that a merge has left. */
(function () {
  "use strict";
  const { html, svg, bytes } = Live;
  const SIDE = 16, // of a patch in the drawing
    WIDE = 480,
    STRIP = 74, // the row of positions
    BASE = 44;

  Live.figure("reading", function (box, data) {
    const [rows, columns] = data.grid,
      size = [columns * SIDE, rows * SIDE],
      means = bytes(data.means);
    const methods = data.methods.map(function (method) {
      const at = bytes(method.assignment);
      return { ...method, at, tokens: Live.members(at) };
    });

    const photo = svg("image", { width: size[0], height: size[1], href: data.photo });
    const fills = svg("g", { "shape-rendering": "crispEdges" }),
      lines = svg("path", { class: "live-outline" });
    const trail = svg("path", { class: "live-trail" }),
      halo = svg("path", { class: "live-mark-halo" }),
      mark = svg("path", { class: "live-mark" });
    const drawing = Live.stacked(size, photo, fills, lines, trail, halo, mark);
    const strip = svg("svg", {
      viewBox: `0 0 ${WIDE} ${STRIP}`,
      role: "img",
      style: "max-width:34rem;margin:0.5rem auto 0",
    });
    const result = html("p", { class: "live-note" }),
      reading = Live.reading();

    const which = Live.choice("Merged by", methods.map((m) => m.label), 0, draw);
    const order = Live.choice("Order", data.orders, 0, draw);
    const longest = Math.max(...methods.map((m) => m.tokens.length));
    const texts = Array.from({ length: longest + 1 }, (_, n) => `${n} of ${longest} tokens`);
    const { slider: step, button: play } = Live.player("read", texts, data.start, 250, draw);

    /** Where the middle of some patches lies in the drawing. */
    function middle(patches) {
      const mean = (of) => patches.reduce((sum, p) => sum + of(p), 0) / patches.length;
      return [(mean((p) => p % columns) + 0.5) * SIDE, (mean((p) => Math.floor(p / columns)) + 0.5) * SIDE];
    }

    function draw() {
      const method = methods[which.value],
        way = method.orders[order.value],
        read = step.value,
        sequence = way.slots.slice(0, read),
        now = read ? way.slots[read - 1] : -1;
      fills.replaceChildren(
        ...sequence.map((t) =>
          svg("path", { d: Live.squares(method.tokens[t], columns, SIDE), fill: Live.colour(method.tokens[t], means) }),
        ),
      );
      lines.setAttribute("d", Live.borders(rows, columns, SIDE, (p, q) => p >= 0 && q >= 0 && method.at[p] !== method.at[q]));
      trail.setAttribute("d", sequence.map((t, i) => `${i ? "L" : "M"}${middle(method.tokens[t]).join(" ")}`).join(""));
      const ring = Live.borders(rows, columns, SIDE, function (p, q) {
        const inside = (patch) => patch >= 0 && method.at[patch] === now;
        return inside(p) !== inside(q);
      });
      [halo, mark].forEach((path) => path.setAttribute("d", ring));

      const unit = WIDE / (rows * columns + data.words),
        used = {};
      const cells = way.slots.map(function (token, i) {
        const position = way.positions[i],
          height = 15;
        used[position] = (used[position] || 0) + 1;
        return svg("rect", {
          x: position * unit,
          y: BASE - height * used[position],
          width: Math.max(unit - 0.6, 1),
          height: height - 1,
          fill: Live.colour(method.tokens[token], means),
          class: i === read - 1 ? "live-now" : i < read ? "live-read" : "live-to-come",
        });
      });
      strip.replaceChildren(
        svg("line", { x1: 0, x2: WIDE, y1: BASE, y2: BASE, class: "live-axis" }),
        ...cells,
        svg("rect", { x: way.length * unit, y: BASE - 15, width: data.words * unit - 1, height: 14, class: "live-words" }),
        svg("text", { x: 0, y: BASE + 22 }, "position 0"),
        svg("text", { x: (way.length + data.words / 2) * unit, y: BASE + 22, "text-anchor": "middle" }, "question"),
      );

      const back = way.positions.slice(1, Math.max(read, 1)).filter((p, i) => p < way.positions[i]).length;
      const jumps = sequence.slice(1).map(function (t, i) {
        const [x, y] = middle(method.tokens[t]),
          [u, v] = middle(method.tokens[sequence[i]]);
        return Math.hypot(x - u, y - v) / SIDE;
      });
      const mean = jumps.length ? jumps.reduce((sum, j) => sum + j, 0) / jumps.length : 0;
      drawing.setAttribute("aria-label", `Tokens of ${method.label}, ${read} of ${method.tokens.length} read`);
      strip.setAttribute("aria-label", `Positions of ${method.tokens.length} tokens; the question begins at ${way.length}`);
      const place = now < 0 ? "nothing is read. " : `the last one holds ${method.tokens[now].length} ` +
        `patch${method.tokens[now].length > 1 ? "es" : ""} and stands at position ${way.positions[read - 1]}. `;
      Live.say(
        reading,
        `${method.label}, ${data.orders[order.value]}: `, [`${read} of ${method.tokens.length} tokens`], `, ${place}`,
        jumps.length ? `A step leads ${Live.decimal(mean, 1)} patches far on average; ${back} lead to a lower position. ` : "",
        `The question begins at position ${way.length}.`,
      );
      Live.say(
        result,
        `“${data.question}” `, [way.said], way.said === data.answer ? " (right)" : ` (right is ${data.answer})`,
        `. Right in ${way.accuracy} of questions of all types.`,
      );
    }

    const first = html("div", { class: "live-controls" }, which.element, order.element);
    const second = html("div", { class: "live-controls" }, step.element);
    if (!Live.still) second.append(play);
    const panel = html("div", { class: "live-panel live-scene", style: "max-width:25rem" }, drawing);
    box.append(first, second, panel, strip, result, reading);
    draw();
  });
})();
