/* The three switches that set PiToMe apart from ToMe. Each of them redraws what merges in a scene; patches of the
   object that share a token with background are marked. */
(function () {
  "use strict";
  const { html, svg, bytes } = Live,
    { compose, mixed } = LiveMethods,
    { SIDE, cut, map } = Live.tokens;

  /** The scene, its object in an outline, and over it the patches of the object that are mixed. */
  function scene(grid) {
    const [rows, columns] = grid,
      size = [columns * SIDE, rows * SIDE];
    const photo = svg("image", { width: size[0], height: size[1] });
    const marked = svg("path", { class: "live-mixed", "shape-rendering": "crispEdges" });
    const halo = svg("path", { class: "live-mark-halo" }),
      line = svg("path", { class: "live-object" });
    const drawing = Live.stacked(size, photo, marked, halo, line),
      note = html("p", { class: "live-note" });
    const element = html("div", { class: "live-panel" }, html("p", { class: "live-title" }, "the object"), drawing, note);
    function draw(picture, found) {
      const inside = new Set(picture.inside);
      photo.setAttribute("href", picture.photo);
      const ring = Live.borders(rows, columns, SIDE, (p, q) => inside.has(p) !== inside.has(q));
      [halo, line].forEach((path) => path.setAttribute("d", ring));
      marked.setAttribute("d", Live.squares(found, columns, SIDE));
      note.textContent = `${found.length} of ${inside.size} patches mixed`;
      drawing.setAttribute("aria-label", `The object of the scene in an outline: ${note.textContent}`);
    }
    return { element, draw };
  }

  /** One row for each setting of the switches: its name, the share of mixed patches, a bar. */
  function settings(count) {
    const rows = Array.from({ length: count }, function () {
      const words = html("span", {}),
        bar = html("span", { class: "live-bar-fill" });
      const element = html("div", { class: "live-setting" }, words, html("span", { class: "live-bar" }, bar));
      return { element, words, bar };
    });
    const title = html("p", { class: "live-title" }, "mixed patches");
    return { element: html("div", { class: "live-panel live-settings" }, title, ...rows.map((r) => r.element)), rows };
  }

  Live.figure("switches", function (box, data) {
    const count = data.grid[0] * data.grid[1],
      columns = data.grid[1],
      depth = data.tokens.length - 1,
      states = data.corners.length;
    const pictures = data.pictures.map((p) => ({ ...p, means: bytes(p.means) }));
    const plans = data.pictures.map((p) => p.plans.map((packed) => cut(packed, data.tokens)));
    let picture = 0,
      chosen = null;
    const which = Live.choice(
      "Scene",
      pictures.map((p) => p.name),
      0,
      function (i) {
        picture = i;
        draw();
      },
    );
    const switches = data.switches.map((s) => Live.choice(s.label, s.words, 0, draw));
    const texts = Array.from({ length: depth + 1 }, (_, l) => `${l} of ${depth} layers`);
    const layer = Live.slider("after", texts, depth, draw);
    const shown = scene(data.grid),
      tokens = map({ label: "its tokens", colour: "pitome" }, data.grid, function (patch) {
        chosen = patch;
        draw();
      });
    const list = settings(states),
      reading = Live.reading();

    /** The positions of the switches in the state of this number: the last switch changes fastest. */
    const positions = (state) => data.switches.map((_, i) => (state >> (data.switches.length - 1 - i)) & 1);
    const words = (state) => positions(state).map((at, i) => `${data.switches[i].label} ${data.switches[i].words[at]}`);
    const brief = (state) => positions(state).map((at, i) => data.switches[i].words[at]);

    function draw() {
      const l = layer.value,
        of = pictures[picture],
        state = switches.reduce((sum, s) => 2 * sum + s.value, 0);
      const at = plans[picture].map((p) => compose(p, count, l));
      const found = at.map((a) => mixed(a, of.inside, of.outside));
      list.rows.forEach(function (row, i) {
        const share = of.inside.length ? found[i].length / of.inside.length : 0;
        const name = data.corners[i] || brief(i).join(", ");
        row.words.textContent = `${name}: ${Math.round(100 * share)} %`;
        row.bar.style.width = `${100 * share}%`;
        row.element.classList.toggle("live-at", i === state);
      });
      shown.draw(of, found[state]);
      const held = tokens.draw(of, at[state], chosen, `after ${texts[l]}`);
      const name = data.corners[state] ? ` (${data.corners[state]})` : "";
      const joined =
        chosen === null
          ? ""
          : ` The token of the patch in ${Live.place(chosen, columns)} holds ${held} ${held === 1 ? "patch" : "patches"}.`;
      const setting = words(state).join(", ");
      Live.say(
        reading,
        `${setting[0].toUpperCase()}${setting.slice(1)}${name}: after ${texts[l]}, ${data.tokens[l]} of ${count} tokens are left, and `,
        [`${found[state].length} of ${of.inside.length} patches of the object`],
        ` share a token with background.${joined}`,
      );
    }

    const first = html("div", { class: "live-controls live-brief" });
    if (pictures.length > 1) first.append(which.element);
    first.append(layer.element);
    const controls = html("div", { class: "live-controls" }, ...switches.map((s) => s.element));
    const maps = html("div", { class: "live-maps" }, shown.element, tokens.element, list.element);
    box.append(controls, first, maps, reading);
    draw();
  });
})();
