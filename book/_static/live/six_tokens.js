/* Six tokens in the plane that can be dragged, a partition of them, and the spectral distance of the two. */
(function () {
  "use strict";
  const { html, svg } = Live,
    { cosines, pitome, tome, assignment, tokenGraph, spectral } = LiveMethods;
  const MAKERS = ["PiToMe", "ToMe", "best", "hand"];
  const GROUPS = 3,
    LETTERS = "ABC";
  const PLANE = 240,
    REACH = 100; // side of the drawing of the plane; length of 1 in it
  const SMALL = 0.25; // a token keeps this length at least: a zero vector has no direction
  const WIDE = 360,
    LEFT = 62,
    RIGHT = 346; // the spectra

  /** Groups numbered in the order of their first token. */
  function numbered(groups) {
    const seen = [...new Set(groups)];
    return groups.map((g) => seen.indexOf(g));
  }

  /** All partitions of n tokens into `count` groups. */
  function partitions(n, count) {
    const grow = (start) =>
      start.length === n
        ? [start]
        : Array.from({ length: Math.min(Math.max(-1, ...start) + 2, count) }, (_, g) => g).flatMap((g) =>
            grow([...start, g]),
          );
    return grow([]).filter((groups) => new Set(groups).size === count);
  }

  /** Values that occur more than once in an ascending list, up to what can be seen, and how often. */
  function several(values) {
    const runs = [];
    for (const v of values) {
      if (runs.length && v - runs[runs.length - 1][0] < 0.004) runs[runs.length - 1][1] += 1;
      else runs.push([v, 1]);
    }
    return runs.filter(([, n]) => n > 1);
  }

  function chosenBy(method, tokens, data) {
    const cos = cosines(tokens),
      remove = tokens.length - GROUPS;
    const plan = method === "PiToMe" ? pitome(cos, remove, data.margin) : tome(cos, remove);
    return numbered(assignment(tokens.length, plan.a, plan.partner));
  }

  Live.figure("six-tokens", function (box, data) {
    const every = partitions(data.tokens.length, GROUPS);
    let tokens = data.tokens.map((t) => t.slice()),
      own = null;
    const rays = svg("g", {}),
      plane = svg(
        "svg",
        { viewBox: `0 0 ${PLANE} ${PLANE}`, "aria-hidden": "true" },
        svg("circle", { cx: PLANE / 2, cy: PLANE / 2, r: REACH, fill: "none", class: "live-faintly" }),
        rays,
      );
    const matrix = svg("g", { "shape-rendering": "crispEdges" }),
      frames = svg("g", {});
    const weights = svg("svg", { viewBox: "0 0 174 174", role: "img", style: "max-width:13rem" }, matrix, frames);
    const spectra = svg("svg", { viewBox: `0 0 ${WIDE} 118`, role: "img" });
    const reading = Live.reading();
    const partition = Live.choice("Groups by", MAKERS, 0, function (i) {
      if (i === 3 && own === null) own = groupsNow();
      draw();
    });
    const buttons = tokens.map(function (_, i) {
      const element = html("button", { type: "button" });
      element.addEventListener("click", function () {
        own = groupsNow().slice();
        own[i] = (own[i] + 1) % GROUPS;
        byHand();
      });
      return element;
    });
    const reset = Live.button("Reset", function () {
      tokens = data.tokens.map((t) => t.slice());
      draw();
    });

    function byHand() {
      partition.set(3);
      draw();
    }
    function best() {
      const graph = tokenGraph(tokens);
      return every.reduce(
        function (found, groups) {
          const distance = spectral(graph, groups).distance;
          return distance < found.distance - 1e-12 ? { groups, distance } : found;
        },
        { distance: Infinity },
      );
    }
    function groupsNow() {
      if (partition.value === 3) return own || chosenBy("PiToMe", tokens, data);
      return partition.value === 2 ? best().groups : chosenBy(["PiToMe", "ToMe"][partition.value], tokens, data);
    }

    /** Put token i at a point of the plane, not nearer to the middle than SMALL and not beyond the circle. */
    function place(i, x, y) {
      const length = Math.hypot(x, y),
        wanted = Math.min(Math.max(length, SMALL), 1);
      tokens[i] = length > 0 ? [(x / length) * wanted, (y / length) * wanted] : tokens[i];
      draw();
    }
    const handles = tokens.map(function (_, i) {
      const handle = html("button", { type: "button" }, String(i + 1));
      const wrap = plane;
      handle.addEventListener("pointerdown", function (event) {
        handle.setPointerCapture(event.pointerId);
        handle.focus();
      });
      handle.addEventListener("pointermove", function (event) {
        if (!handle.hasPointerCapture(event.pointerId)) return;
        const area = wrap.getBoundingClientRect(),
          scale = PLANE / area.width / REACH;
        place(
          i,
          (event.clientX - area.left - area.width / 2) * scale,
          (area.top + area.height / 2 - event.clientY) * scale,
        );
      });
      handle.addEventListener("keydown", function (event) {
        const turn = { ArrowLeft: 1, ArrowUp: 1, ArrowRight: -1, ArrowDown: -1 }[event.key];
        if (!turn) return;
        event.preventDefault();
        const angle = (turn * 3 * Math.PI) / 180,
          [x, y] = tokens[i];
        place(i, x * Math.cos(angle) - y * Math.sin(angle), x * Math.sin(angle) + y * Math.cos(angle));
      });
      return handle;
    });

    function drawPlane(groups) {
      rays.replaceChildren(
        ...tokens.map(([x, y], i) =>
          svg("line", {
            x1: PLANE / 2,
            y1: PLANE / 2,
            x2: PLANE / 2 + REACH * x,
            y2: PLANE / 2 - REACH * y,
            "stroke-width": 2.5,
            class: `live-fill-${groups[i]}`,
          }),
        ),
      );
      tokens.forEach(function ([x, y], i) {
        const angle = Math.round((Math.atan2(y, x) * 180) / Math.PI + 360) % 360;
        handles[i].style.left = `${50 + (100 * REACH * x) / PLANE}%`;
        handles[i].style.top = `${50 - (100 * REACH * y) / PLANE}%`;
        handles[i].className = `live-handle live-in-${groups[i]}`;
        handles[i].setAttribute(
          "aria-label",
          `Token ${i + 1}, ${angle} degrees, group ${LETTERS[groups[i]]}. Arrow keys turn it.`,
        );
        buttons[i].className = `live-group live-in-${groups[i]}`;
        buttons[i].textContent = `${i + 1}: ${LETTERS[groups[i]]}`;
        buttons[i].setAttribute(
          "aria-label",
          `Token ${i + 1} is in group ${LETTERS[groups[i]]}. Press to put it into the next group.`,
        );
      });
    }
    function drawWeights(graph, groups) {
      const order = groups.map((_, i) => i).sort((i, j) => groups[i] - groups[j] || i - j),
        side = 25,
        from = 24;
      matrix.replaceChildren();
      frames.replaceChildren();
      order.forEach(function (i, r) {
        frames.append(
          svg("text", { x: from - 10, y: from + r * side + 17, "text-anchor": "middle" }, String(i + 1)),
          svg("text", { x: from + r * side + side / 2, y: 14, "text-anchor": "middle" }, String(i + 1)),
        );
        order.forEach((j, c) =>
          matrix.append(
            svg("rect", {
              x: from + c * side,
              y: from + r * side,
              width: side - 1,
              height: side - 1,
              fill: "currentColor",
              "fill-opacity": (0.04 + 0.46 * graph[i][j]).toFixed(3),
            }),
          ),
        );
      });
      for (let g = 0, at = from; g < GROUPS; g++) {
        const size = groups.filter((h) => h === g).length * side;
        if (size)
          frames.append(
            svg("rect", {
              x: at,
              y: at,
              width: size - 1,
              height: size - 1,
              style: "fill:none",
              "stroke-width": 3,
              class: `live-fill-${g}`,
            }),
          );
        at += size;
      }
      weights.setAttribute(
        "aria-label",
        "Weights 1 - cos of all pairs, dark where far; the squares round the diagonal are the groups",
      );
    }
    function drawSpectra(result) {
      const x = (value) => LEFT + (value / 2) * (RIGHT - LEFT),
        tick = (value, y, name) => svg("line", { x1: x(value), x2: x(value), y1: y - 9, y2: y + 9, class: name });
      spectra.replaceChildren(
        svg("text", { x: 0, y: 28 }, "tokens"),
        svg("text", { x: 0, y: 72 }, "lifted"),
        svg("line", { class: "live-axis", x1: LEFT, x2: RIGHT, y1: 92, y2: 92 }),
        ...[0, 0.5, 1, 1.5, 2].map((v) => svg("text", { x: x(v), y: 108, "text-anchor": "middle" }, String(v))),
        ...result.before.map((v, i) =>
          svg("line", { x1: x(v), x2: x(result.after[i]), y1: 33, y2: 59, class: "live-faintly" }),
        ),
        ...result.before.map((v) => tick(v, 24, "live-tick")),
        ...result.after.map((v) => tick(v, 68, "live-tick live-lifted")),
        ...several(result.before).map(([v, n]) => svg("text", { x: x(v) + 6, y: 28 }, `×${n}`)),
        ...several(result.after).map(([v, n]) => svg("text", { x: x(v) + 6, y: 72 }, `×${n}`)),
      );
      const list = (values) => values.map((v) => v.toFixed(2)).join(", ");
      const words = `Eigenvalues of the tokens: ${list(result.before)}; of the lifted graph: ${list(result.after)}`;
      spectra.setAttribute("aria-label", words);
    }
    function draw() {
      const groups = groupsNow(),
        graph = tokenGraph(tokens),
        result = spectral(graph, groups),
        least = best().distance;
      drawPlane(groups);
      drawWeights(graph, groups);
      drawSpectra(result);
      const sum = result.shares.map((s, g) => `${s.toFixed(3)} (${LETTERS[g]})`).join(" + ");
      Live.say(
        reading,
        `Groups by ${MAKERS[partition.value]}: `,
        [`spectral distance ${result.distance.toFixed(3)}`],
        ` = ${sum}, the shares of each group's degrees that lie inside it. ` +
          (new Set(groups).size < GROUPS
            ? `Only ${new Set(groups).size} groups are left, so fewer tokens.`
            : `The least of all ${every.length} partitions into three is ${least.toFixed(3)}.`),
      );
    }

    const heading = (text) => html("p", { class: "live-note" }, text);
    box.append(
      html("div", { class: "live-controls" }, partition.element, reset),
      html(
        "div",
        { class: "live-two" },
        html(
          "div",
          {},
          html("div", { class: "live-plane" }, plane, ...handles),
          html("div", { class: "live-groups" }, ...buttons),
        ),
        html(
          "div",
          {},
          heading("weights W = 1 − cos, tokens by group"),
          weights,
          heading("eigenvalues of the normalized Laplacian"),
          spectra,
        ),
      ),
      reading,
    );
    draw();
  });
})();
