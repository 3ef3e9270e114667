/* Tokens in four clusters, in an order, with sizes, closeness and noise that the reader sets: which merges join two
   clusters, by PiToMe and by ToMe, and the spectral distance, in one draw and in all draws. */
(function () {
  "use strict";
  const { html, svg } = Live,
    { clustered, cosines, pitome, tome, assignment, tokenGraph, shares } = LiveMethods;
  const ORDERS = ["block", "shuffled", "adversarial"],
    NAMES = ["PiToMe", "ToMe"],
    LETTERS = "ABCD";
  const WIDE = 480,
    LEFT = 64,
    RIGHT = 474, // the distances
    CELL = 22; // height of a token in a strip
  const LOW = -5, // the axis of distances starts at 10 to this power and ends at 1
    UP = 64; // room for the arcs over a strip

  /** One draw merged by both methods: order, labels, who merges into whom, how many wrongly, spectral distance. */
  function merged(data, drawn, sizes, cosine, noise, order) {
    const { tokens, labels } = clustered(drawn.unit, sizes, cosine, noise, order, drawn.places);
    const cos = cosines(tokens),
      graph = tokenGraph(tokens),
      places = tokens.map((_, i) => i);
    return [pitome(cos, data.remove, data.margin), tome(cos, data.remove)].map(function (plan) {
      const groups = assignment(tokens.length, plan.a, plan.partner);
      const wrong = plan.a.map((i, n) => labels[i] !== labels[plan.partner[n]]);
      return {
        row: plan.order ? plan.order.slice(0, 2 * data.remove) : places,
        labels,
        a: plan.a,
        partner: plan.partner,
        wrong,
        count: wrong.filter(Boolean).length,
        distance: shares(graph, groups).reduce((sum, share) => sum + share, 0),
      };
    });
  }

  /** A row of tokens, coloured by cluster, and an arc from every token that merges to its partner. */
  function strip(found, words, top) {
    const wide = WIDE / found.row.length,
      middle = (token) => (found.row.indexOf(token) + 0.5) * wide,
      floor = top + UP;
    const arcs = found.a.map(function (i, n) {
      const from = middle(i),
        to = middle(found.partner[n]),
        high = Math.min(14 + Math.abs(from - to) * 0.42, UP - 26);
      return svg("path", {
        d: `M${from.toFixed(1)} ${floor}C${from.toFixed(1)} ${floor - high * 1.3} ${to.toFixed(1)} ${floor - high * 1.3} ${to.toFixed(1)} ${floor}`,
        class: found.wrong[n] ? "live-arc live-wrong" : "live-arc",
      });
    });
    const cells = found.row.flatMap(function (token, n) {
      const label = found.labels[token];
      return [
        svg("rect", { x: n * wide + 0.5, y: floor, width: wide - 1, height: CELL, class: `live-cluster-${label}` }),
        svg(
          "text",
          { x: (n + 0.5) * wide, y: floor + 16, "text-anchor": "middle", class: "live-on-light" },
          LETTERS[label],
        ),
      ];
    });
    return [svg("text", { x: 0, y: top + 12 }, words), ...arcs, ...cells];
  }

  /** Every draw's distance on a logarithmic axis; hollow where a merge was wrong, ringed the draw that is shown. */
  function distances(draws, shown, top) {
    const x = (value) => LEFT + ((Math.max(Math.log10(value), LOW) - LOW) / -LOW) * (RIGHT - LEFT);
    const rows = NAMES.flatMap(function (name, m) {
      const y = top + 38 + 24 * m;
      return [
        svg("text", { x: 0, y: y + 4 }, name),
        ...draws.map((of, d) =>
          svg("circle", {
            cx: x(of[m].distance).toFixed(1),
            cy: y,
            r: d === shown ? 7 : 4.2,
            class: `live-draw live-draw-${m}${of[m].count ? " live-hollow" : ""}`,
          }),
        ),
      ];
    });
    const axis = top + 82,
      ticks = Array.from({ length: 1 - LOW }, (_, i) => 10 ** (LOW + i));
    return [
      svg("text", { x: 0, y: top + 12 }, `spectral distance in ${draws.length} draws; hollow: a merge was wrong`),
      ...rows,
      svg("line", { class: "live-axis", x1: LEFT, x2: RIGHT, y1: axis, y2: axis }),
      ...ticks.map((v) =>
        svg("text", { x: Math.min(x(v), RIGHT - 6), y: axis + 16, "text-anchor": "middle" }, String(+v.toFixed(5))),
      ),
    ];
  }

  Live.figure("clusters", function (box, data) {
    let shown = data.start.draw;
    const order = Live.choice("Order of tokens", ORDERS, data.start.order, draw);
    const sizes = Live.slider(
      "cluster sizes",
      data.sizes.map((s) => s.join(", ")),
      data.start.sizes,
      draw,
    );
    const cosine = Live.slider("cosine of centres", data.cosines.map(String), data.start.cosine, draw);
    const noise = Live.slider("noise", data.noises.map(String), data.start.noise, draw);
    const next = Live.button("Another draw", function () {
      shown = (shown + 1) % data.draws.length;
      draw();
    });
    const drawing = svg("svg", { viewBox: `0 0 ${WIDE} 332`, role: "img", style: "max-width:34rem;margin:0 auto" }),
      reading = Live.reading();

    function draw() {
      const set = [data.sizes[sizes.value], data.cosines[cosine.value], data.noises[noise.value], ORDERS[order.value]];
      const draws = data.draws.map((drawn) => merged(data, drawn, ...set)),
        [first, second] = draws[shown];
      drawing.replaceChildren(
        ...strip(first, `PiToMe: the ${2 * data.remove} tokens of highest energy; every second one merges`, 0),
        ...strip(second, "ToMe: all tokens, in their order; the closest pairs merge", 108),
        ...distances(draws, shown, 222),
      );
      const words = draws[shown].map(
        (of, m) => `${NAMES[m]} ${of.distance.toFixed(4)} with ${of.count} of ${data.remove} merges wrong`,
      );
      const clean = NAMES.map((name, m) => `${name} in ${draws.filter((of) => !of[m].count).length}`);
      drawing.setAttribute("aria-label", `Merges of draw ${shown + 1} and distances of all draws. ${words.join("; ")}`);
      Live.say(
        reading,
        `Draw ${shown + 1}, spectral distance: `,
        [words[0]],
        "; ",
        [words[1]],
        `. No wrong merge: ${clean.join(", ")} of ${draws.length} draws.`,
      );
    }

    box.append(
      html("div", { class: "live-controls" }, order.element, next),
      html("div", { class: "live-controls" }, sizes.element, cosine.element, noise.element),
      drawing,
      reading,
    );
    draw();
  });
})();
